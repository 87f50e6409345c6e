-- What settle.lua and throttle.lua share: a call that was let go has ended.
-- Asked with: `waiter`; `outcome`; `latency`; `retry_after`, if known; `expected`, tokens by name;
-- `used`, what it really took by name, as far as it is known; `told`, by name the `limit` and what is
-- `remaining` as the provider said; `grant`, which acquire.lua answered of the call.

local RECENT_CALLS = 20     -- by whose outcomes one refusal is told from many
local OLDEST_REPORT = 10    -- what headers say of the level is stale after that
local grant, used, told, is_held, flying, was_known

local function begin_settlement()
  grant, used, told, was_known = asked.grant, asked.used, {}, is_known
  is_held = redis.call('ZREM', FLIGHT, asked.waiter) == 1
  if is_held then note_size(FLIGHT, -1) end
  flying = size(FLIGHT)
end

local function note_told_limits()
  for _, name in ipairs(NAMES) do
    local of = asked.told[name]
    if of and of.limit > 0 then
      told[name] = of.remaining
      if state['told_' .. name] ~= of.limit then
        set('told_' .. name, of.limit)
        set('peak_' .. name, of.remaining)
      else
        set('peak_' .. name, math.max(get('peak_' .. name), of.remaining))
      end
    end
  end
  if next(told) then
    set('told_at', now)
    read_limits()
    refill()
  end
end

-- What was charged is put right, where it is known what the call took.
local function put_right()
  if not (used.input and used.output and is_held) then return end
  used.tokens = used.input + used.output
  for name, limit in pairs(limits) do
    local level = state['level_' .. name]
    -- As at the grant: nothing is charged more than a minute's limit, so no more comes back.
    local new = level + math.min(grant.charged[name], limit) - used[name]
    if new > level then new = math.max(level, math.min(new, capacity(name))) end
    set('level_' .. name, new)
  end
end

-- The provider's own count goes before ours: others may use the credential, or it may allow more.
local function follow_headers(is_trusted)
  local age = now - grant.at
  if age > OLDEST_REPORT then return end
  for name, remaining in pairs(told) do
    local since = get('spent_' .. name) - grant.spent[name]
    local real = remaining - since + limits[name] / 60 * age
    real = math.min(real, math.max(capacity(name), get('peak_' .. name))) - margin(name)
    local level = state['level_' .. name]
    -- Told in whole numbers: the truth is up to one more.
    if level > real + 1 then set('level_' .. name, real + 1)
    -- 0 is also said of a bucket in debt.
    elseif is_trusted and remaining > 0 and level < real then
      set('level_' .. name, level + (real - level) / 2)
    end
  end
end

-- How the last calls ended. The counts are halved when there are many, so that old ones fade.
local function count_outcome()
  local keep = get('recent') >= math.max(RECENT_CALLS, 2 * flying) and 0.5 or 1
  set('recent', get('recent') * keep + 1)
  for _, name in ipairs({'failed', 'throttled'}) do
    set('recent_' .. name, get('recent_' .. name) * keep + (asked.outcome == name and 1 or 0))
  end
end

-- Whether half of the last calls ended so. Nothing is known against those under way: of many
-- that leave together, the first to come back are the refused ones.
local function is_common(outcome, least)
  local count = get('recent_' .. outcome)
  return count >= least and count * 2 >= get('recent') + flying
end

-- The provider has answered, if only to refuse: its circuit is closed.
local function close_circuit()
  if get('open_until') == 0 or get('open_until') > now then return end
  for _, name in ipairs({'open_until', 'opens', 'probe_until', 'recent', 'recent_failed',
    'recent_throttled'}) do
    set(name, 0)
  end
end

-- Answers whether a limit is known now for the first time.
local function settled()
  return is_known and not was_known and 1 or 0
end
