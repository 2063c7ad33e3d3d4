-- Replaces a document by a newer one, if the one that this was made of still stands there.
-- KEYS: the vCon's key. ARGV: how it is stored, the text that must stand there, the text to write, all ingress lists.
-- Returns as `finish` does: {1}, {2} if the document has been deleted, {'changed'}, {'large'}, {'unwritten', error}.

local now, is_large = stands(KEYS[1], ARGV[1])
if is_large then return {'large'} end
if not now then return {2} end
if now == ARGV[3] then return {1} end
if now ~= ARGV[2] then return {'changed'} end
local refusal = write(KEYS[1], ARGV[1], ARGV[3], ARGV[4])
if refusal then return {'unwritten', refusal} end
return {1}
