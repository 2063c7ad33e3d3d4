-- How old a reason is. Goes before the scripts that need it.

-- What fails again within so many seconds was put back on its list by somebody who does not wait.
local YOUNG = 60

-- Seconds since a reason was kept; of one that does not tell, more than any.
local function seconds_since(reason)
  local at = tonumber(reason:match('"at":(%d+%.?%d*)}$'))
  if not at then return math.huge end
  local now = redis.call('TIME')
  return now[1] + now[2] / 1e6 - at
end

