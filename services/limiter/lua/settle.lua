-- A call has ended, other than by a 429: see settlement.lua.
-- `outcome` is answered, failed, refused, quota, model_quota, cancelled or unused.

local FAILURES_TO_OPEN = 5
local FIRST_OPEN, LONGEST_OPEN = 10, 300
local QUOTA_REST = 60

-- What such calls really take, how long they last, and whether more at once go well.
local function learn()
  local weight = get('samples') < 5 and 0.5 or 0.1
  set('samples', get('samples') + 1)
  for name, expected in pairs(asked.expected) do
    if expected > 0 and used[name] then
      local factor = math.max(0.1, math.min(10, used[name] / expected))
      set('factor_' .. name, get('factor_' .. name, 1) * (1 - weight) + factor * weight)
    end
  end
  set('latency', get('latency', asked.latency) * 0.9 + asked.latency * 0.1)
  set('throttled', 0)
  local window = get('window', FIRST_WINDOW)
  if flying + 1 >= window / 2 then
    set('window', math.min(LARGEST_WINDOW, window + 1 / window))
  end
end

-- Opened when half of the last calls failed, for longer each time that its probe fails too.
local function open_circuit()
  local is_closed = get('open_until') == 0
  if grant.is_probe or (is_closed and is_common('failed', FAILURES_TO_OPEN)) then
    set('open_until', now + math.min(LONGEST_OPEN, FIRST_OPEN * 2 ^ math.min(get('opens'), 10)))
    set('opens', get('opens') + 1)
    set('probe_until', 0)
  end
end

function actions.settle()
  local outcome = asked.outcome
  local says_nothing = outcome == 'cancelled' or outcome == 'unused'
  begin_settlement()
  note_told_limits()
  -- A call that was refused is counted as a request, and none of its tokens. Of one that broke, nobody
  -- knows.
  used.requests = grant.charged.requests
  if outcome == 'refused' or outcome == 'quota' or outcome == 'model_quota' then
    used.input, used.output = 0, 0
  elseif outcome == 'unused' then
    used = {requests = 0, input = 0, output = 0}
  end
  put_right()
  follow_headers(outcome == 'answered' and get('distrust_until') <= now)
  if outcome == 'answered' then learn() end
  if not says_nothing then count_outcome() end

  if outcome == 'model_quota' then
    set('quota_until', now + QUOTA_REST)
  elseif outcome == 'quota' then
    quota_of_credential = now + QUOTA_REST
    redis.call('HSET', CREDENTIAL, 'quota_until', string.format('%.6f', quota_of_credential))
    redis.call('EXPIRE', CREDENTIAL, QUOTA_REST * 2)
  end

  if outcome == 'failed' then
    open_circuit()
  elseif not says_nothing then
    close_circuit()
  elseif grant.is_probe then
    set('probe_until', 0)
  end
  return settled()
end
