-- Takes or renews the turn of one instance at a follower, or gives it up.
-- KEYS: the key of the turn, the list of what is to be fetched, the set of followers.
-- ARGV: the instance, the time to live in milliseconds (0: give it up), the follower.
-- Returns the instance that has the turn; '' if it was given up.

local holder = redis.call('GET', KEYS[1])
if ARGV[2] == '0' then
  if holder == ARGV[1] then redis.call('DEL', KEYS[1]) end
  return ''
end
if holder and holder ~= ARGV[1] then return holder end
-- Whoever has the turn takes UUIDs off another server's list, and must be able to keep them. So this fails if there is
-- no list to keep them in; and the first write may take memory, which a full Redis refuses.
redis.call('LLEN', KEYS[2])
redis.call('SADD', KEYS[3], ARGV[3])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
