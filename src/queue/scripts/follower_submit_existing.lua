-- Hands in a vCon whose document is there already, as it is.
-- KEYS: the list of what is to be fetched, the hash of its tries, the vCon's key, the ingress list, what notes the
--       document's digest.
-- ARGV: the UUID, the digest, how long the digest is noted, the documents' time to live.
-- Returns 1 when done, 0 if another instance has done it, {'gone'} if there is no document any more, {'refused', why}.

local why = no_list(KEYS[4])
if why then return {'refused', why} end
if redis.call('EXISTS', KEYS[3]) == 0 then return {'gone'} end
if not take(KEYS[1], KEYS[2], ARGV[1]) then return 0 end
keep_alive(KEYS[3], ARGV[4])
redis.call('RPUSH', KEYS[4], ARGV[1])
note_pulled(KEYS[5], ARGV[2], ARGV[3])
return 1
