-- Takes the oldest copy of an entry out of a storage's dead letter queue, after its vCon has been saved.
-- KEYS: the dead letter list, the hash of reasons, the replay lock.
-- ARGV: entry, the reason it had or '', the value of the lock.
-- Returns how many copies were taken, or 'lost' where somebody else has the lock, or nobody.

if not is_locked_by(KEYS[3], ARGV[3]) then return 'lost' end
-- One copy only: a worker that changes the vCon meanwhile adds another, which is still to be saved.
local taken = redis.call('LREM', KEYS[1], 1, ARGV[1])
-- A reason that is another one by now belongs to that other copy.
if ARGV[2] ~= '' and redis.pcall('HGET', KEYS[2], ARGV[1]) == ARGV[2] then redis.pcall('HDEL', KEYS[2], ARGV[1]) end
return taken
