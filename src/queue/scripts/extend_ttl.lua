-- Sets the time to live of a key to its full length if less than half of it is left. Returns 1 if it did. Goes before the
-- scripts that need it.
local function keep_alive(key, time)
  local left = redis.call('PTTL', key)
  if left < 0 or left >= (tonumber(time) or 0) * 500 then return 0 end
  return redis.pcall('EXPIRE', key, time) == 1 and 1 or 0
end

