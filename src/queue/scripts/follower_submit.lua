-- Submits a pulled vCon: moves the draft of its document to its place. Leaves a document alone that exists.
-- KEYS: the list of UUIDs to fetch, the hash of their tries, the vCon's key, the draft, the ingress list, the sorted set,
--       the key of the document's digest.
-- ARGV: the UUID, its score in the sorted set, the digest, the digest's time to live.
-- Returns 1 if done, 0 if another instance has done it, {'there'} if a document exists, {'refused', why}.

local function without_draft(answer)
  redis.call('DEL', KEYS[4])
  return answer
end

local why = no_list(KEYS[5])
if why then return without_draft({'refused', why}) end
if redis.call('EXISTS', KEYS[4]) == 0 then return {'refused', 'the document was not kept'} end
if redis.call('EXISTS', KEYS[3]) == 1 then return without_draft({'there'}) end
if not take(KEYS[1], KEYS[2], ARGV[1]) then return without_draft(0) end
redis.call('RENAME', KEYS[4], KEYS[3])
redis.call('PERSIST', KEYS[3])
redis.call('RPUSH', KEYS[5], ARGV[1])
redis.pcall('ZADD', KEYS[6], ARGV[2], KEYS[3])
note_pulled(KEYS[7], ARGV[3], ARGV[4])
return 1
