-- Whether a replay lock exists with this value. Goes before the scripts that need it.
local function is_locked_by(lock, value)
  return redis.call('TYPE', lock).ok == 'string' and redis.call('GET', lock) == value
end

