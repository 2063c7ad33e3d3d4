-- Puts a UUID whose document could not be fetched behind the others.
-- KEYS: the list of what is to be fetched, the hash of its tries.
-- ARGV: the UUID, 1 if this try counts, else 0, how long the tries are kept.
-- Returns how many tries have counted.

-- A full Redis refuses the first write of a script, if it may take memory. LREM takes none.
if redis.call('LREM', KEYS[1], 0, ARGV[1]) == 0 then return 0 end
redis.call('RPUSH', KEYS[1], ARGV[1])
local tries = redis.pcall('HINCRBY', KEYS[2], ARGV[1], ARGV[2])
if type(tries) ~= 'number' then return 0 end -- not a number
redis.pcall('EXPIRE', KEYS[2], ARGV[3])
return tries
