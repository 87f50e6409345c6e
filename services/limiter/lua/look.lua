-- How many calls more than wait now could leave within `horizon` seconds.
function actions.look()
  local closed_until = math.max(
    get('paused'), get('open_until'), get('probe_until'), quota_until())
  local room = closed_until > now and 0 or LARGEST_WINDOW
  for _, name in ipairs(NAMES) do
    if limits[name] then
      local each = name == 'requests' and 1 or math.max(1, get('mean_' .. name))
      room = math.min(room, (state['level_' .. name] + limits[name] / 60 * asked.horizon) / each)
    end
  end
  local most = most_in_flight()
  if most then
    local turns = asked.horizon / math.max(0.005, get('latency', 0.2))
    room = math.min(room, most * turns - size(FLIGHT))
  end
  local waiting = size(WAITING[1]) + size(WAITING[2])
  return math.max(0, math.floor(room - waiting))
end
