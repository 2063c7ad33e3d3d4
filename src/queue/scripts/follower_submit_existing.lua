-- Submits a pulled vCon whose document exists, with that document.
-- KEYS: the list of UUIDs to fetch, the hash of their tries, the vCon's key, the ingress list, the key of the document's
--       digest.
-- ARGV: the UUID, the digest, the digest's time to live, the documents' time to live.
-- Returns 1 if done, 0 if another instance has done it, {'gone'} if the document no longer exists, {'refused', why}.

local why = no_list(KEYS[4])
if why then return {'refused', why} end
if redis.call('EXISTS', KEYS[3]) == 0 then return {'gone'} end
if not take(KEYS[1], KEYS[2], ARGV[1]) then return 0 end
keep_alive(KEYS[3], ARGV[4])
redis.call('RPUSH', KEYS[4], ARGV[1])
note_pulled(KEYS[5], ARGV[2], ARGV[3])
return 1
