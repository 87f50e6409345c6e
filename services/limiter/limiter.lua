-- The shared rate limiter: every check and every change of a bucket, in one atomic step on
-- Redis time. docs/limiter.md explains the rules; the units are seconds, requests and tokens.
--
-- KEYS  1 bucket (hash)          what is known of one provider, credential and model
--       2 waiting, interactive   (sorted set: waiter by order of coming)
--       3 waiting, bulk          (the same)
--       4 due (sorted set)       waiter by when it must ask again, or be forgotten
--       5 flight (sorted set)    permit by when its lease ends
--       6 credential (hash)      what holds for all models of the credential
-- ARGV  1 operation; 2-5 configured limits a minute ('' is none) of requests, tokens, input
--       tokens and output tokens; 6 calls in flight ('' is none); 7 burst in seconds;
--       the rest as each operation says.

local NAMES = {'requests', 'tokens', 'input', 'output'}
local FIRST_WINDOW = 4        -- calls in flight while no limit is known
local LARGEST_WINDOW = 1024
local BULK_EVERY = 8          -- of so many grants, one is bulk's while interactive calls wait
local LATE = 2.5              -- a waiter that is so late has died
local LONGEST_DEFERRAL = 600
local RECENT_CALLS = 20       -- by whose outcomes one refusal is told from many
local FAILURES_TO_OPEN = 5
local SEVERAL = 3             -- refusals at least that are no accident
local SHORT_WAIT = 3          -- a provider that asks for more means everyone
local FIRST_OPEN, LONGEST_OPEN = 10, 300
local FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60
local QUOTA_REST = 60
local OLDEST_REPORT = 10      -- what headers say of the level is stale after that
local OVERTAKING = 0.03
local FORGET = 86400

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000

local stored = redis.call('HGETALL', KEYS[1])
local state, is_new = {}, #stored == 0
for i = 1, #stored, 2 do state[stored[i]] = tonumber(stored[i + 1]) end
local changed = {}
local function get(name, default) return state[name] or default or 0 end
local function set(name, value) state[name] = value; changed[name] = value end

local function save()
  local flat = {}
  for name, value in pairs(changed) do
    flat[#flat + 1] = name
    flat[#flat + 1] = string.format('%.6f', value)
  end
  if #flat > 0 then
    redis.call('HSET', KEYS[1], unpack(flat))
    redis.call('EXPIRE', KEYS[1], FORGET)
  end
end

-- The limit that holds: what settings say, and not more than the provider says.
local limits, is_known = {}, false
local burst = tonumber(ARGV[7])
local function read_limits()
  for i, name in ipairs(NAMES) do
    local limit, told = tonumber(ARGV[i + 1]), state['told_' .. name]
    if told and (not limit or told < limit) then limit = told end
    limits[name] = limit
    if limit then is_known = true end
  end
end
read_limits()

-- A little is left unused, for calls that overtake each other on their way to the provider.
local function margin(name)
  local full = limits[name] / 60 * burst
  return name == 'requests' and math.min(3, full * 0.2) or full * 0.1
end

-- How much a bucket gathers by time alone. A provider's headers may lift it higher.
local function capacity(name)
  local full = limits[name] / 60 * burst - margin(name)
  return name == 'requests' and math.max(1, full) or full
end

local function refill()
  local passed = is_new and 0 or math.max(0, now - get('at', now))
  for _, name in ipairs(NAMES) do
    local limit = limits[name]
    if limit then
      local field, full = 'level_' .. name, capacity(name)
      local level = state[field]
      if not level then
        -- Nothing is known, perhaps since Redis was lost: one call, and then at the rate.
        level = name == 'requests' and 1 or full
      elseif level < full then
        level = math.min(full, level + limit / 60 * passed)
      end
      set(field, level)
    end
  end
  set('at', now)
end
refill()

local function most_in_flight()
  local set_by_person = tonumber(ARGV[6])
  if set_by_person then return set_by_person end
  if is_known then return nil end
  return math.floor(get('window', FIRST_WINDOW))
end

local function forget_waiter(waiter)
  local class = redis.call('ZREM', KEYS[2], waiter) == 1 and 1 or 2
  if class == 1 or redis.call('ZREM', KEYS[3], waiter) == 1 then
    local tokens = tonumber(string.match(waiter, ':(%d+)$'))
    set('waiting_' .. class, math.max(0, get('waiting_' .. class) - tokens))
  end
  redis.call('ZREM', KEYS[4], waiter)
end

local operation = ARGV[1]

if operation == 'leave' then
  forget_waiter(ARGV[8])
  save()
  return {'left'}
end

if operation == 'room' then
  -- ARGV 8 horizon. How many calls more could leave within it than wait already.
  local horizon = tonumber(ARGV[8])
  local closed = math.max(get('paused'), get('open_until'), get('probe_until'), get('quota_until'),
    tonumber(redis.call('HGET', KEYS[6], 'quota_until') or 0))
  local room = closed > now and 0 or LARGEST_WINDOW
  for _, name in ipairs(NAMES) do
    if limits[name] then
      local each = name == 'requests' and 1 or math.max(1, get('mean_' .. name))
      room = math.min(room, (state['level_' .. name] + limits[name] / 60 * horizon) / each)
    end
  end
  local most = most_in_flight()
  if most then
    local turns = horizon / math.max(0.005, get('latency', 0.2))
    room = math.min(room, most * turns - redis.call('ZCARD', KEYS[5]))
  end
  local waiting = redis.call('ZCARD', KEYS[2]) + redis.call('ZCARD', KEYS[3])
  save()
  return {'room', math.max(0, math.floor(room - waiting))}
end

if operation == 'acquire' then
  -- ARGV 8 waiter, 'id:tokens'; 9 class (1 interactive, 2 bulk); 10 input and 11 output tokens
  -- expected; 12 patience; 13 lease; 14 longest sleep between two questions
  -- of a waiter that is near its turn; others sleep half their way.
  local waiter, class = ARGV[8], tonumber(ARGV[9])
  local input, output = tonumber(ARGV[10]), tonumber(ARGV[11])
  local patience, lease = tonumber(ARGV[12]), tonumber(ARGV[13])

  local function refuse(verdict, seconds, what)
    forget_waiter(waiter)
    save()
    return {verdict, tostring(seconds), what}
  end

  local quota_until = math.max(get('quota_until'),
    tonumber(redis.call('HGET', KEYS[6], 'quota_until') or 0))
  if quota_until > now then return refuse('quota', quota_until - now, '') end

  local open_until, probe_until = get('open_until'), get('probe_until')
  if open_until > now then return refuse('open', open_until - now, '') end
  if open_until > 0 and probe_until > now then
    return refuse('open', math.min(5, probe_until - now), '')
  end

  if limits.tokens and input > limits.tokens then
    return refuse('large', limits.tokens, 'tokens')
  end
  if limits.input and input > limits.input then
    return refuse('large', limits.input, 'input tokens')
  end

  -- What such calls really cost, as the last ones have shown.
  local expected = input + output
  input = math.ceil(input * get('factor_input', 1))
  output = math.ceil(output * get('factor_output', 1))
  local costs = {requests = 1, tokens = input + output, input = input, output = output}
  for _, name in ipairs(NAMES) do
    if limits[name] then costs[name] = math.min(costs[name], limits[name]) end
  end

  for _, late in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, 10)) do
    forget_waiter(late)
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', now)

  -- Who goes before: interactive calls, in the order of their coming; of every few one of bulk.
  local cards = {redis.call('ZCARD', KEYS[2]), redis.call('ZCARD', KEYS[3])}
  local own = KEYS[1 + class]
  local rank = redis.call('ZRANK', own, waiter)
  local is_waiting = rank ~= false
  rank = rank or cards[class]
  local turn, between = math.min(get('turn'), BULK_EVERY - 1), BULK_EVERY - 1
  local before = {0, 0}
  before[class] = rank
  if class == 1 then
    before[2] = math.min(cards[2], math.floor((rank + turn) / between))
  else
    before[1] = math.min(cards[1], rank * between + between - turn)
  end
  local ahead = before[1] + before[2]
  local tokens_ahead = 0
  for i = 1, 2 do
    if cards[i] > 0 then tokens_ahead = tokens_ahead + before[i] * get('waiting_' .. i) / cards[i] end
  end
  local function amount_ahead(name)
    if name == 'requests' then return ahead end
    return expected == 0 and 0 or tokens_ahead * costs[name] / expected
  end

  local wait, why, each = 0, '', 0
  for _, name in ipairs(NAMES) do
    local limit = limits[name]
    if limit and limit > 0 then
      -- A call that is larger than the bucket waits for a full one and leaves it in debt.
      local needed = math.min(costs[name], capacity(name)) + amount_ahead(name)
      local seconds = (needed - state['level_' .. name]) * 60 / limit
      if seconds > wait then wait, why = seconds, name end
      each = math.max(each, costs[name] * 60 / limit)
    elseif limit then
      wait, why = LONGEST_DEFERRAL, name
    end
  end
  local most, flying = most_in_flight(), redis.call('ZCARD', KEYS[5])
  if most then
    local turn = math.max(0.005, get('latency', 0.2) / math.max(1, most))
    each = math.max(each, turn)
    local short = ahead + 1 - (most - flying)
    if short > 0 and short * turn > wait then wait, why = short * turn, 'in_flight' end
  end
  local paused = get('paused') - now
  if paused > 0 then wait, why = math.max(wait, paused + ahead * each), 'pause' end

  if wait <= 0 then
    for _, name in ipairs(NAMES) do
      local limit, cost = limits[name], costs[name]
      if limit then
        -- Where each call takes all there is, one that overtakes another on its way would be
        -- refused.
        if cost > capacity(name) / 2 then cost = cost + limit / 60 * OVERTAKING end
        set('level_' .. name, state['level_' .. name] - cost)
        set('mean_' .. name, get('mean_' .. name, costs[name]) * 0.9 + costs[name] * 0.1)
      end
      set('spent_' .. name, get('spent_' .. name) + costs[name])
    end
    if is_waiting then forget_waiter(waiter) end
    if class == 2 then set('turn', 0)
    elseif cards[2] > 0 then set('turn', get('turn') + 1) end
    redis.call('ZADD', KEYS[5], now + lease, waiter)
    redis.call('EXPIRE', KEYS[5], math.ceil(lease) + FORGET)
    local is_probe = 0
    if open_until > 0 then
      is_probe = 1
      set('probe_until', now + lease)
    end
    save()
    local granted = {'go', string.format('%.6f', now), costs.input, costs.output, is_probe}
    for _, name in ipairs(NAMES) do
      granted[#granted + 1] = string.format('%.6f', state['spent_' .. name])
    end
    for _, name in ipairs(NAMES) do granted[#granted + 1] = limits[name] or '' end
    granted[#granted + 1] = most or ''
    return granted
  end

  if wait > patience then
    -- Its slot is better used by others. Where many are sent away, they come back one by one.
    local field = 'deferred_' .. class
    local at = math.max(get(field), now + wait - each * ahead)
    set(field, math.min(at + each, now + LONGEST_DEFERRAL))
    return refuse('later', math.min(LONGEST_DEFERRAL, math.max(wait, at - now)), why)
  end

  if not is_waiting then
    set('sequence', get('sequence') + 1)
    redis.call('ZADD', own, state.sequence, waiter)
    set('waiting_' .. class, get('waiting_' .. class) + expected)
  end
  redis.call('ZADD', KEYS[4], now + math.max(tonumber(ARGV[14]), wait / 2) + LATE, waiter)
  for i = 2, 4 do redis.call('EXPIRE', KEYS[i], FORGET) end
  save()
  return {'wait', tostring(wait), why}
end

-- settle
-- ARGV 8 permit; 9 outcome; 10 latency; 11 retry-after ('' is unknown); 12 input and 13 output
-- tokens expected; 14 input and 15 output tokens charged; 16 input and 17 output tokens used
-- ('' is unknown); 18 time of the grant; 19 whether it was the probe; 20-23 what was spent at the
-- grant; 24-27 limits and 28-31 remaining that the provider told ('' is nothing).
local outcome, latency, retry_after = ARGV[9], tonumber(ARGV[10]), tonumber(ARGV[11])
local is_held = redis.call('ZREM', KEYS[5], ARGV[8]) == 1
local charged = {input = tonumber(ARGV[14]), output = tonumber(ARGV[15])}
charged.tokens = charged.input + charged.output
-- As at the grant: nothing is charged more than a minute's limit, so no more comes back.
if limits.tokens then charged.tokens = math.min(charged.tokens, limits.tokens) end
local used = {input = tonumber(ARGV[16]), output = tonumber(ARGV[17])}
local granted_at, is_probe = tonumber(ARGV[18]), ARGV[19] == '1'

local told, was_known = {}, is_known
for i, name in ipairs(NAMES) do
  local limit, remaining = tonumber(ARGV[23 + i]), tonumber(ARGV[27 + i])
  if limit and remaining and limit > 0 then
    told[name] = remaining
    if state['told_' .. name] ~= limit then
      set('told_' .. name, limit)
      set('peak_' .. name, remaining)
    else
      set('peak_' .. name, math.max(get('peak_' .. name), remaining))
    end
  end
end
if next(told) then
  set('told_at', now)
  read_limits()
  refill()
end

-- What was charged is put right. A throttled or refused call is not counted by the provider; of
-- one that broke, nobody knows.
used.requests, charged.requests = 1, 1
if outcome == 'throttled' or outcome == 'refused' or outcome == 'quota'
  or outcome == 'model_quota' or outcome == 'unused' then
  local is_free = outcome == 'throttled' or outcome == 'unused'
  used = {requests = is_free and 0 or 1, input = 0, output = 0}
end
if used.input and used.output and is_held then
  used.tokens = used.input + used.output
  for _, name in ipairs(NAMES) do
    if limits[name] then
      local level, difference = state['level_' .. name], used[name] - charged[name]
      local new = level - difference
      if difference < 0 then new = math.max(level, math.min(new, capacity(name))) end
      set('level_' .. name, new)
    end
  end
end

-- The provider's own count goes before ours: others may use the credential, or it may allow more.
local age = now - granted_at
if age <= OLDEST_REPORT then
  local is_trusted = outcome == 'answered' and get('distrust_until') <= now
  for i, name in ipairs(NAMES) do
    if told[name] and limits[name] then
      local since = get('spent_' .. name) - tonumber(ARGV[19 + i])
      local full, level = capacity(name), state['level_' .. name]
      local real = told[name] - since + limits[name] / 60 * age
      real = math.min(real, math.max(full, get('peak_' .. name)))
      real = real - margin(name)
      -- Told in whole numbers: the truth is up to one more.
      if level > real + 1 then set('level_' .. name, real + 1)
      -- 0 is also said of a bucket in debt.
      elseif is_trusted and told[name] > 0 and level < real then
        set('level_' .. name, level + (real - level) / 2)
      end
    end
  end
end

if outcome == 'answered' then
  local weight = get('samples') < 5 and 0.5 or 0.1
  set('samples', get('samples') + 1)
  for i, name in ipairs({'input', 'output'}) do
    local expected = tonumber(ARGV[11 + i])
    if expected > 0 and used[name] then
      local factor = math.max(0.1, math.min(10, used[name] / expected))
      set('factor_' .. name, get('factor_' .. name, 1) * (1 - weight) + factor * weight)
    end
  end
  set('latency', get('latency', latency) * 0.9 + latency * 0.1)
  set('throttled', 0)
  local window = get('window', FIRST_WINDOW)
  if redis.call('ZCARD', KEYS[5]) + 1 >= window / 2 then
    set('window', math.min(LARGEST_WINDOW, window + 1 / window))
  end
end

-- How the last calls went. The counts are halved when there are many, so that old ones fade.
local flying = redis.call('ZCARD', KEYS[5])
if outcome ~= 'cancelled' and outcome ~= 'unused' then
  local keep = get('recent') >= math.max(RECENT_CALLS, 2 * flying) and 0.5 or 1
  set('recent', get('recent') * keep + 1)
  for _, name in ipairs({'failed', 'throttled'}) do
    set('recent_' .. name, get('recent_' .. name) * keep + (outcome == name and 1 or 0))
  end
end

-- Whether half of the last calls ended so. Nothing is known against those under way: of many
-- that leave together, the first to come back are the refused ones.
local function is_common(name, least)
  local count = get('recent_' .. name)
  return count >= least and count * 2 >= get('recent') + flying
end

-- Whether the headers say that there was room for this call: its own, or those of the answers
-- before it; nil where they say nothing.
local function headers_say_room()
  -- Of tokens twice what is expected, as the provider may count more than we do.
  local needed = {requests = 1, input = 2 * tonumber(ARGV[12]), output = 2 * tonumber(ARGV[13])}
  needed.tokens = needed.input + needed.output
  local has_own, has_room = next(told) ~= nil, nil
  for _, name in ipairs(NAMES) do
    local left = told[name]
    if not has_own and state['told_' .. name] and now - get('told_at') <= OLDEST_REPORT then
      left = state['level_' .. name]
    end
    if left then
      if left < math.min(needed[name], limits[name]) then
        if has_own then return false end
        return nil  -- our count is no proof
      end
      has_room = true
    end
  end
  return has_room
end

-- A 429 is about everyone where its headers say so, several agree, or it asks for long and nothing
-- speaks against it. Else it is about its call.
if outcome == 'throttled' then
  local has_room = headers_say_room()
  if not is_common('throttled', SEVERAL) then
    if has_room then outcome = 'stray'
    elseif has_room == nil and (retry_after or 0) <= SHORT_WAIT then outcome = 'unexplained' end
  end
end

local function cut_window()
  -- Once for the calls that were under way together.
  if now - get('window_cut') > math.max(get('latency', 1), 1) then
    set('window', math.max(1, get('window', FIRST_WINDOW) / 2))
    set('window_cut', now)
  end
end

if outcome == 'unexplained' then
  -- The call alone waits, but nothing that was saved up is used.
  for _, name in ipairs(NAMES) do
    if limits[name] then
      local cost = name == 'requests' and 1 or math.min(charged[name], capacity(name))
      set('level_' .. name, math.min(state['level_' .. name], cost))
    end
  end
  cut_window()
elseif outcome == 'throttled' then
  local seconds = retry_after
  if not seconds then
    seconds = math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ^ math.min(get('throttled'), 10))
  end
  set('throttled', get('throttled') + 1)
  set('paused', math.max(get('paused'), now + seconds))
  local is_contradiction = true
  for _, name in ipairs(NAMES) do
    if told[name] and told[name] < 1 then is_contradiction = false end
    if limits[name] and not told[name] then
      -- When the pause is over there is room for this call, and for no more.
      local cost = name == 'requests' and 1 or math.min(charged[name], capacity(name))
      local left = cost - limits[name] / 60 * seconds
      set('level_' .. name, math.min(state['level_' .. name], left))
    end
  end
  if is_contradiction then set('distrust_until', now + 60) end
  cut_window()
elseif outcome == 'model_quota' then
  set('quota_until', now + QUOTA_REST)
elseif outcome == 'quota' then
  redis.call('HSET', KEYS[6], 'quota_until', string.format('%.6f', now + QUOTA_REST))
  redis.call('EXPIRE', KEYS[6], QUOTA_REST * 2)
end

-- The circuit: opened when half of the last calls failed, closed by any sign of life.
if outcome == 'failed' then
  local is_closed = get('open_until') == 0
  if is_probe or (is_closed and is_common('failed', FAILURES_TO_OPEN)) then
    set('open_until', now + math.min(LONGEST_OPEN, FIRST_OPEN * 2 ^ math.min(get('opens'), 10)))
    set('opens', get('opens') + 1)
    set('probe_until', 0)
  end
elseif outcome ~= 'cancelled' and outcome ~= 'unused' then
  if get('open_until') > 0 and get('open_until') <= now then
    for _, name in ipairs({'open_until', 'opens', 'probe_until', 'recent', 'recent_failed',
      'recent_throttled'}) do
      set(name, 0)
    end
  end
elseif is_probe then
  set('probe_until', 0)
end
save()
return {'settled', is_known and not was_known and 1 or 0}
