-- Removes the oldest copy of an entry from a storage's dead letter queue, after its vCon has been saved.
-- KEYS: the dead letter list, the hash of reasons, the replay lock.
-- ARGV: entry, the reason it had or '', the value of the lock, how many bytes of the reason were read at most.
-- Returns how many copies were removed, or 'lost' if the lock is not held with this value.

if not is_locked_by(KEYS[3], ARGV[3]) then return 'lost' end
-- One copy only: a worker that changes the vCon meanwhile adds another copy, which still has to be saved.
local taken = redis.call('LREM', KEYS[1], 1, ARGV[1])
-- A reason that has changed belongs to that other copy.
local reason = ARGV[2] ~= '' and redis.pcall('HGET', KEYS[2], ARGV[1])
if type(reason) == 'string' and reason:sub(1, ARGV[4]) == ARGV[2] then redis.pcall('HDEL', KEYS[2], ARGV[1]) end
return taken
