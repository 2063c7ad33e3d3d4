-- Adds the present time to a reason (a JSON object). Goes before the scripts that need it.
local function with_time(reason)
  local now = redis.call('TIME')
  return reason:sub(1, -2) .. ',"at":' .. now[1] .. '.' .. ('%06d'):format(now[2]) .. '}'
end

