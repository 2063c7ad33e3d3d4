-- Takes or renews the lease of one instance to pull for a follower, or releases it.
-- KEYS: the lease, the list of UUIDs to fetch, the set of followers.
-- ARGV: the instance, the time to live in milliseconds (0: release it), the follower.
-- Returns the instance that holds the lease; '' if it was released.

local holder = redis.call('GET', KEYS[1])
if ARGV[2] == '0' then
  if holder == ARGV[1] then redis.call('DEL', KEYS[1]) end
  return ''
end
if holder and holder ~= ARGV[1] then return holder end
-- The holder takes UUIDs off another server's list, and must be able to record them. So this fails if the key of the list
-- holds another type, or if Redis is full: the first write may take memory.
redis.call('LLEN', KEYS[2])
redis.call('SADD', KEYS[3], ARGV[3])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
