-- The limiter's script answers questions about one bucket, in the order in which they were asked.
-- A bucket is what is limited together: a provider, a credential and a model. Its state is read once
-- and written once, however many questions there are; all of it is one atomic step on Redis time.
-- docs/limiter.md explains the rules; the units are seconds, requests and tokens.
--
-- This is how the script begins; each question's file adds its function to `actions`, and answers.lua
-- calls them.
--
-- KEYS  1 bucket (hash)         its state
--       2 interactive, 3 bulk   (sorted sets) waiters by their turns: see fair_queue.lua
--       4 due (sorted set)      waiters by when they must ask again, or are forgotten
--       5 in flight (sorted set)  calls under way by when their leases end
--       6 credential (hash)     what holds for all models of the credential
--       7 users of interactive, 8 of bulk  (sorted sets) by the turn that their next call gets
--       9 away (sorted set)     users by when the next call that is sent away shall come back
--       They have one hash tag, so that they lie on one node of a Redis Cluster.
-- ARGV  1 JSON: of a person's settings `limits` by name (a minute), `in_flight` and `burst`; and the
--       `questions`, each with its `act` and the words that its file names

local BUCKET, WAITING, DUE, FLIGHT, CREDENTIAL = KEYS[1], {KEYS[2], KEYS[3]}, KEYS[4], KEYS[5], KEYS[6]
local USERS, AWAY = {KEYS[7], KEYS[8]}, KEYS[9]
local NAMES = {'requests', 'tokens', 'input', 'output'}
local FIRST_WINDOW = 4      -- calls in flight while no limit is known
local LARGEST_WINDOW = 1024
local FORGET = 86400        -- after so long without a call, nothing is known

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local given = cjson.decode(ARGV[1])
local asked                 -- the question that is being answered
local actions = {}          -- what answers it, by `act`

local stored = redis.call('HGETALL', BUCKET)
local state, is_new, changed = {}, #stored == 0, {}
for i = 1, #stored, 2 do state[stored[i]] = tonumber(stored[i + 1]) end
local function get(name, default) return state[name] or default or 0 end
local function set(name, value) state[name] = value; changed[name] = value end

local kept = {}             -- how long keys are kept, in seconds

local function save()
  local flat = {}
  for name, value in pairs(changed) do
    flat[#flat + 1] = name
    flat[#flat + 1] = string.format('%.6f', value)
  end
  if #flat > 0 then
    redis.call('HSET', BUCKET, unpack(flat))
    kept[BUCKET] = FORGET
  end
  for key, seconds in pairs(kept) do redis.call('EXPIRE', key, seconds) end
end

-- The limits that hold: what settings say, and not more than the provider says.
local limits, is_known = {}, false
local function read_limits()
  for _, name in ipairs(NAMES) do
    local limit, told = given.limits[name], state['told_' .. name]
    if told and (not limit or told < limit) then limit = told end
    limits[name] = limit
    if limit then is_known = true end
  end
end

-- A little is left unused, for calls that overtake each other on their way to the provider.
local function margin(name)
  local full = limits[name] / 60 * given.burst
  return name == 'requests' and math.min(3, full * 0.2) or full * 0.1
end

-- How much a bucket gathers by time alone. A provider's headers may lift it higher.
local function capacity(name)
  local full = limits[name] / 60 * given.burst - margin(name)
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
  if given.in_flight then return given.in_flight end
  if is_known then return nil end
  return math.floor(get('window', FIRST_WINDOW))
end

local quota_of_credential
local function quota_until()
  if not quota_of_credential then
    quota_of_credential = tonumber(redis.call('HGET', CREDENTIAL, 'quota_until') or 0)
  end
  return math.max(get('quota_until'), quota_of_credential)
end

-- How many stand in a sorted set. Redis is asked once; who adds or takes away tells `note_size`.
local sizes = {}
local function size(key)
  if not sizes[key] then sizes[key] = redis.call('ZCARD', key) end
  return sizes[key]
end
local function note_size(key, more)
  if sizes[key] then sizes[key] = sizes[key] + more end
end

read_limits()
refill()
