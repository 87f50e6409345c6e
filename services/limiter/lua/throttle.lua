-- A call got a 429, which pauses the bucket or concerns its own call alone. It concerns everyone if
-- its headers say so, if several calls agree, or if it asks for long and no headers say otherwise.

local SEVERAL = 3             -- refusals at least that are no accident
local SHORT_WAIT = 3          -- a provider that asks for more means everyone
local FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60
local DISTRUST = 60           -- headers that a 429 contradicts are not believed for so long

-- Whether the headers say that there was room for this call: its own, or those of the answers
-- before it; nil where they say nothing.
local function headers_say_room()
  -- Of tokens twice what is expected, as the provider may count more than we do.
  local needed = {requests = 1, input = 2 * asked.expected.input, output = 2 * asked.expected.output}
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

-- At most as much is left of a limit as this call takes, `seconds` from now.
local function leave_room_for_one(name, seconds)
  local charged = math.min(grant.charged[name], limits[name])
  local cost = name == 'requests' and 1 or math.min(charged, capacity(name))
  local left = cost - limits[name] / 60 * seconds
  set('level_' .. name, math.min(state['level_' .. name], left))
end

local function cut_window()
  -- Once for the calls that were under way together.
  if now - get('window_cut') > math.max(get('latency', 1), 1) then
    set('window', math.max(1, get('window', FIRST_WINDOW) / 2))
    set('window_cut', now)
  end
end

local function pause_everyone()
  local seconds = asked.retry_after
  if not seconds then
    seconds = math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ^ math.min(get('throttled'), 10))
  end
  set('throttled', get('throttled') + 1)
  set('paused', math.max(get('paused'), now + seconds))
  local is_contradiction = true
  for name in pairs(limits) do
    if not told[name] then leave_room_for_one(name, seconds)
    elseif told[name] < 1 then is_contradiction = false end
  end
  if is_contradiction then set('distrust_until', now + DISTRUST) end
  cut_window()
end

function actions.throttle()
  begin_settlement()
  note_told_limits()
  used = {requests = 0, input = 0, output = 0}  -- the provider doesn't count it
  put_right()
  follow_headers(false)
  count_outcome()
  local has_room = headers_say_room()
  if is_common('throttled', SEVERAL)
    or has_room == false
    or has_room == nil and (asked.retry_after or 0) > SHORT_WAIT then
    pause_everyone()
  elseif has_room == nil then
    -- The call alone waits, but nothing that was saved up is used.
    for name in pairs(limits) do leave_room_for_one(name, 0) end
    cut_window()
  end
  close_circuit()
  return settled()
end
