-- Takes the housekeeping lease, renews it, or releases it.
-- KEYS: the lease.
-- ARGV: 'take', 'renew' or 'release', the instance, the lease's time to live in milliseconds.
-- Returns 0 if the instance holds the lease, or has released it; otherwise the time to live of somebody else's in
-- milliseconds, at least 1.

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
-- A key without a time to live is no lease.
if left >= 0 or ARGV[1] ~= 'take' then return math.max(1, left) end
-- Nothing that takes memory comes first, so that the lease can be taken on a full server.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 0
