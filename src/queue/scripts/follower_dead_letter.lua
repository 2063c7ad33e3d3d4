-- Moves a UUID whose document cannot be fetched to the dead letter queue of the list it was meant for.
-- KEYS: the list of UUIDs to fetch, the hash of their tries, the dead letter list, the hash of reasons, the vCon's key.
-- ARGV: the UUID, the reason (a JSON object), a dead letter document's time to live (0: no limit).
-- Returns 1 if done, 0 if another instance has done it, {'refused', why}.

local why = no_list(KEYS[3])
if why then return {'refused', why} end
if not take(KEYS[1], KEYS[2], ARGV[1]) then return 0 end
redis.call('RPUSH', KEYS[3], ARGV[1])
redis.pcall('HSET', KEYS[4], ARGV[1], with_time(ARGV[2]))
redis.pcall('SADD', 'conserver:letters', KEYS[3])
-- A document that exists may be in work elsewhere: its time to live is raised, never lowered.
local left, time = redis.call('PTTL', KEYS[5]), tonumber(ARGV[3])
if left >= 0 and time == 0 then
  redis.pcall('PERSIST', KEYS[5])
elseif left >= 0 and left < time * 1000 then
  redis.pcall('EXPIRE', KEYS[5], time)
end
return 1
