-- In which order calls wait: users take turns by weight, and a user's own calls go in the order they
-- came. This is start-time fair queueing (Goyal, Vin and Cheng, 1996): a call's turn is when
-- its user's call before it has had its share, counted in seconds of the limit that such calls take
-- up; and never before the turn that is served now, so that nobody saves up turns while idle.
-- A waiter is named 'id:user:weight:input:output', so that whoever forgets it knows what it waited for.

local function read_name(waiter)
  local user, weight, input, output = string.match(waiter, ':([^:]*):([^:]+):(%d+):(%d+)$')
  if not user then return '', 1, tonumber(string.match(waiter, ':(%d+)$')) or 0, 0 end
  return user, tonumber(weight), tonumber(input), tonumber(output)
end

-- What a call costs of each limit, by what the last calls have really taken.
local function costs_of_call(input, output)
  input = math.ceil(input * get('factor_input', 1))
  output = math.ceil(output * get('factor_output', 1))
  local costs = {requests = 1, tokens = input + output, input = input, output = output}
  for name, limit in pairs(limits) do costs[name] = math.min(costs[name], limit) end
  return costs
end

-- How long the call takes up what is limited.
local function seconds_of(costs)
  local seconds = 0
  for name, limit in pairs(limits) do
    if limit > 0 then seconds = math.max(seconds, costs[name] * 60 / limit) end
  end
  local most = most_in_flight()
  if most then seconds = math.max(seconds, 0.005, get('latency', 0.2) / math.max(1, most)) end
  return seconds
end

-- How far a call puts off its user's next turn.
local function share_of(waiter)
  local _, weight, input, output = read_name(waiter)
  return seconds_of(costs_of_call(input, output)) / weight
end

-- The turn of a call that comes now.
local function turn_of(class, waiter)
  local user = read_name(waiter)
  local next_turn = redis.call('ZSCORE', USERS[class], user)
  return math.max(get('served_' .. class), tonumber(next_turn or 0))
end

local function take_turn(class, waiter, turn)
  local user = read_name(waiter)
  redis.call('ZADD', USERS[class], turn + share_of(waiter), user)
  kept[USERS[class]] = FORGET
end

-- A turn is served. Users whose next turn is over by now are as good as new.
local function note_served(class, turn)
  if turn <= get('served_' .. class) then return end
  set('served_' .. class, turn)
  redis.call('ZREMRANGEBYSCORE', USERS[class], '-inf', turn)
end

-- A waiter waits no more. Unless it is let go, its user has the turn back.
local function forget_waiter(waiter, is_let_go)
  for class = 1, 2 do
    if size(WAITING[class]) > 0 and redis.call('ZREM', WAITING[class], waiter) == 1 then
      note_size(WAITING[class], -1)
      local user, _, input, output = read_name(waiter)
      set('waiting_' .. class, math.max(0, get('waiting_' .. class) - input - output))
      if not is_let_go then redis.call('ZINCRBY', USERS[class], -share_of(waiter), user) end
      break
    end
  end
  if size(DUE) > 0 then note_size(DUE, -redis.call('ZREM', DUE, waiter)) end
end
