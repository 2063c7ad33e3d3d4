-- Takes the lease of the one who keeps what waits from running out, renews it, or gives it up.
-- KEYS: the lease.
-- ARGV: 'take', 'renew' or 'release', the instance, the lease's time to live in milliseconds.
-- Returns 0 where the instance has it, or has given it up; otherwise how long somebody else's lives, in milliseconds, at
-- least 1.

local holder = redis.pcall('GET', KEYS[1])
if holder == ARGV[2] then
  if ARGV[1] == 'release' then
    redis.call('DEL', KEYS[1])
  else
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
  end
  return 0
end
local left = redis.call('PTTL', KEYS[1])
-- What does not run out is no lease.
if left >= 0 or ARGV[1] ~= 'take' then return math.max(1, left) end
-- Nothing that grows comes first, so that the lease can be had on a server that is full.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 0
