-- Puts a UUID whose document could not be fetched at the end of the list.
-- KEYS: the list of UUIDs to fetch, the hash of their tries.
-- ARGV: the UUID, 1 if this try counts, else 0, the time to live of the tries.
-- Returns how many tries counted.

-- A full Redis refuses the first write of a script if it may take memory. LREM takes none.
if redis.call('LREM', KEYS[1], 0, ARGV[1]) == 0 then return 0 end
redis.call('RPUSH', KEYS[1], ARGV[1])
local tries = redis.pcall('HINCRBY', KEYS[2], ARGV[1], ARGV[2])
if type(tries) ~= 'number' then return 0 end -- not a number
redis.pcall('EXPIRE', KEYS[2], ARGV[3])
return tries
