-- How old a reason is. Goes before the scripts that need it.

-- An entry that fails again within this many seconds was put back on its list by somebody who does not wait.
local YOUNG = 60

-- Seconds since a reason was recorded; infinite if the reason has no time.
local function seconds_since(reason)
  -- Of its end alone: in a long text of others, the search would take a time that grows with the square of its length.
  local at = tonumber(reason:sub(-40):match('"at":(%d+%.?%d*)}$'))
  if not at then return math.huge end
  local now = redis.call('TIME')
  return now[1] + now[2] / 1e6 - at
end

