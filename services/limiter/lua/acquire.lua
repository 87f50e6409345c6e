-- May a call leave? It is let go, waits for its turn, or is refused.
-- Asked with: `waiter`; `class` (1 interactive, 2 bulk); `input` and `output`, the tokens expected;
-- `patience`, how long it would wait; `lease`, after which it counts as ended unless renewed;
-- `longest_sleep` between two questions of a waiter near its turn (others sleep half their way).

local BULK_EVERY = 8          -- of so many calls let go, one is bulk's while interactive calls wait
local LATE = 2.5              -- a waiter that is so late has died
local LONGEST_DEFERRAL = 600
local OVERTAKING = 0.03
local waiter, class

local function refuse(verdict, seconds, what)
  forget_waiter(waiter)
  return {verdict, tostring(seconds), what}
end

-- The verdict on a call that no wait for its turn would let go; else nil.
local function closed()
  local spent_until, open_until, probe_until = quota_until(), get('open_until'), get('probe_until')
  if spent_until > now then return refuse('quota', spent_until - now, '') end
  if open_until > now then return refuse('open', open_until - now, '') end
  if open_until > 0 and probe_until > now then
    return refuse('open', math.min(5, probe_until - now), '')
  end
  if limits.tokens and asked.input > limits.tokens then
    return refuse('large', limits.tokens, 'tokens')
  end
  if limits.input and asked.input > limits.input then
    return refuse('large', limits.input, 'input tokens')
  end
end

local are_dead_forgotten = false
local function forget_the_dead()
  if are_dead_forgotten then return end
  if size(DUE) > 0 then
    local most = 10 * #given.questions
    for _, late in ipairs(redis.call('ZRANGEBYSCORE', DUE, '-inf', now, 'LIMIT', 0, most)) do
      forget_waiter(late)
    end
  end
  note_size(FLIGHT, -redis.call('ZREMRANGEBYSCORE', FLIGHT, '-inf', now))
  are_dead_forgotten = true
end

-- How many calls of its class go before this one, and its turn; without a turn where nobody waits.
local function place(cards)
  if cards[class] == 0 then return 0, nil, false end
  local turn = tonumber(redis.call('ZSCORE', WAITING[class], waiter) or nil)
  if turn then return redis.call('ZRANK', WAITING[class], waiter), turn, true end
  turn = turn_of(class, waiter)
  return redis.call('ZCOUNT', WAITING[class], '-inf', turn), turn, false
end

-- How many calls and tokens go before this one: interactive calls, and of every few calls one of bulk.
local function queue_ahead(rank, cards)
  local turn, between = math.min(get('turn'), BULK_EVERY - 1), BULK_EVERY - 1
  local before = {0, 0}
  before[class] = rank
  if class == 1 then
    before[2] = math.min(cards[2], math.floor((rank + turn) / between))
  else
    before[1] = math.min(cards[1], rank * between + between - turn)
  end
  local tokens = 0
  for i = 1, 2 do
    if cards[i] > 0 then tokens = tokens + before[i] * get('waiting_' .. i) / cards[i] end
  end
  return before[1] + before[2], tokens
end

-- How long the call must wait and why, if each call ahead of it takes up so many seconds.
local function time_to_wait(costs, each, ahead, tokens_ahead)
  local wait, why = 0, ''
  local expected = asked.input + asked.output
  for _, name in ipairs(NAMES) do
    local limit, cost = limits[name], costs[name]
    if limit and limit > 0 then
      local amount_ahead = ahead
      if name ~= 'requests' then
        amount_ahead = expected == 0 and 0 or tokens_ahead * cost / expected
      end
      -- A call that is larger than the bucket waits for a full one and leaves it in debt.
      local needed = math.min(cost, capacity(name)) + amount_ahead
      local seconds = (needed - state['level_' .. name]) * 60 / limit
      if seconds > wait then wait, why = seconds, name end
    elseif limit then
      wait, why = LONGEST_DEFERRAL, name
    end
  end
  local most = most_in_flight()
  if most then
    local turn = math.max(0.005, get('latency', 0.2) / math.max(1, most))
    local short = ahead + 1 - (most - size(FLIGHT))
    if short > 0 and short * turn > wait then wait, why = short * turn, 'in_flight' end
  end
  local paused = get('paused') - now
  if paused > 0 then wait, why = math.max(wait, paused + ahead * each), 'pause' end
  return wait, why
end

-- Answers what settle.lua and throttle.lua must know of the call, and the limits that hold.
local function let_go(costs, turn, is_waiting, is_bulk_waiting)
  for name, limit in pairs(limits) do
    local cost = costs[name]
    -- Where each call takes all there is, one that overtakes another on its way would be refused.
    local reserve = cost > capacity(name) / 2 and limit / 60 * OVERTAKING or 0
    set('level_' .. name, state['level_' .. name] - cost - reserve)
    set('mean_' .. name, get('mean_' .. name, cost) * 0.9 + cost * 0.1)
  end
  local spent = {}
  for _, name in ipairs(NAMES) do
    spent[name] = get('spent_' .. name) + costs[name]
    set('spent_' .. name, spent[name])
  end
  if is_waiting then forget_waiter(waiter, true)
  elseif turn then take_turn(class, waiter, turn) end
  if turn then note_served(class, turn) end
  if class == 2 then set('turn', 0)
  elseif is_bulk_waiting then set('turn', get('turn') + 1) end
  note_size(FLIGHT, redis.call('ZADD', FLIGHT, now + asked.lease, waiter))
  kept[FLIGHT] = math.ceil(asked.lease) + FORGET
  local is_probe = get('open_until') > 0
  if is_probe then set('probe_until', now + asked.lease) end
  local grant = {at = now, charged = costs, spent = spent, is_probe = is_probe}
  local hold = {in_flight = most_in_flight()}
  for name, limit in pairs(limits) do hold[name] = limit end
  return {'go', cjson.encode(grant), cjson.encode(hold)}
end

-- The call's slot in its worker is better used by others. Where many are sent away, those of a user
-- come back one by one, so that the users do in turns.
local function send_away(wait, why, each, ahead)
  local user = class .. ':' .. read_name(waiter)
  redis.call('ZREMRANGEBYSCORE', AWAY, '-inf', now)
  local after_last = tonumber(redis.call('ZSCORE', AWAY, user) or 0)
  local at = math.max(after_last, now + wait - each * ahead)
  local users = redis.call('ZCARD', AWAY) + (after_last > 0 and 0 or 1)
  redis.call('ZADD', AWAY, math.min(at + each * users, now + LONGEST_DEFERRAL), user)
  kept[AWAY] = FORGET
  return refuse('later', math.min(LONGEST_DEFERRAL, math.max(wait, at - now)), why)
end

local function keep_waiting(wait, turn, is_waiting)
  if not is_waiting then
    turn = turn or turn_of(class, waiter)
    take_turn(class, waiter, turn)
    note_size(WAITING[class], redis.call('ZADD', WAITING[class], turn, waiter))
    set('waiting_' .. class, get('waiting_' .. class) + asked.input + asked.output)
  end
  local late_at = now + math.max(asked.longest_sleep, wait / 2) + LATE
  note_size(DUE, redis.call('ZADD', DUE, late_at, waiter))
  kept[WAITING[class]], kept[DUE] = FORGET, FORGET
  return {'wait', tostring(wait)}
end

function actions.acquire()
  waiter, class = asked.waiter, asked.class
  local verdict = closed()
  if verdict then return verdict end
  forget_the_dead()
  local cards = {size(WAITING[1]), size(WAITING[2])}
  local rank, turn, is_waiting = place(cards)
  local ahead, tokens_ahead = queue_ahead(rank, cards)
  local costs = costs_of_call(asked.input, asked.output)
  local each = seconds_of(costs)
  local wait, why = time_to_wait(costs, each, ahead, tokens_ahead)
  if wait <= 0 then return let_go(costs, turn, is_waiting, cards[2] > 0) end
  if wait > asked.patience then return send_away(wait, why, each, ahead) end
  return keep_waiting(wait, turn, is_waiting)
end
