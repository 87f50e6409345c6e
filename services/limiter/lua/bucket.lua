-- How every script of the limiter begins: the state of one bucket, as it is now. A bucket is what is
-- limited together: a provider, a credential and a model. Each script is one atomic step on Redis
-- time. docs/limiter.md explains the rules; the units are seconds, requests and tokens.
--
-- KEYS  1 bucket (hash)         its state
--       2 interactive, 3 bulk   (sorted sets) waiters by order of coming
--       4 due (sorted set)      waiters by when they must ask again, or are forgotten
--       5 in flight (sorted set)  calls under way by when their leases end
--       6 credential (hash)     what holds for all models of the credential
--       They have one hash tag, so that they lie on one node of a Redis Cluster.
-- ARGV  1 the caller's words as JSON; of a person's settings: `limits` by name (a minute),
--       `in_flight` and `burst`; the rest as each script says

local BUCKET, WAITING, DUE, FLIGHT, CREDENTIAL = KEYS[1], {KEYS[2], KEYS[3]}, KEYS[4], KEYS[5], KEYS[6]
local NAMES = {'requests', 'tokens', 'input', 'output'}
local FIRST_WINDOW = 4      -- calls in flight while no limit is known
local LARGEST_WINDOW = 1024
local FORGET = 86400        -- after so long without a call, nothing is known

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local asked = cjson.decode(ARGV[1])

local stored = redis.call('HGETALL', BUCKET)
local state, is_new, changed = {}, #stored == 0, {}
for i = 1, #stored, 2 do state[stored[i]] = tonumber(stored[i + 1]) end
local function get(name, default) return state[name] or default or 0 end
local function set(name, value) state[name] = value; changed[name] = value end

local function save()
  local flat = {}
  for name, value in pairs(changed) do
    flat[#flat + 1] = name
    flat[#flat + 1] = string.format('%.6f', value)
  end
  if #flat > 0 then
    redis.call('HSET', BUCKET, unpack(flat))
    redis.call('EXPIRE', BUCKET, FORGET)
  end
end

-- The limits that hold: what settings say, and not more than the provider says.
local limits, is_known = {}, false
local function read_limits()
  for _, name in ipairs(NAMES) do
    local limit, told = asked.limits[name], state['told_' .. name]
    if told and (not limit or told < limit) then limit = told end
    limits[name] = limit
    if limit then is_known = true end
  end
end

-- A little is left unused, for calls that overtake each other on their way to the provider.
local function margin(name)
  local full = limits[name] / 60 * asked.burst
  return name == 'requests' and math.min(3, full * 0.2) or full * 0.1
end

-- How much a bucket gathers by time alone. A provider's headers may lift it higher.
local function capacity(name)
  local full = limits[name] / 60 * asked.burst - margin(name)
  return name == 'requests' and math.max(1, full) or full
end

-- How much of each limit is there: `level_...`.
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

local function most_in_flight()
  if asked.in_flight then return asked.in_flight end
  if is_known then return nil end
  return math.floor(get('window', FIRST_WINDOW))
end

local function quota_until()
  local of_credential = redis.call('HGET', CREDENTIAL, 'quota_until')
  return math.max(get('quota_until'), tonumber(of_credential or 0))
end

-- A waiter is named 'id:tokens', so that whoever forgets it knows what it waited for.
local function forget_waiter(waiter)
  for class = 1, 2 do
    if redis.call('ZREM', WAITING[class], waiter) == 1 then
      local tokens = tonumber(string.match(waiter, ':(%d+)$'))
      set('waiting_' .. class, math.max(0, get('waiting_' .. class) - tokens))
      break
    end
  end
  redis.call('ZREM', DUE, waiter)
end

read_limits()
refill()
