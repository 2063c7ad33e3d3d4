-- Puts a claimed entry back at the head of its list, with its context.
-- KEYS: the claims hash, the ingress list.
-- ARGV: lane, the claim's token, entry, context, the context's time to live, the document's, the field of its progress, the
--       key of the document that the progress belongs to, the progress or '', the text that must stand there, the progress
--       that the claim got, the time to live of progress.
-- Returns 1 if done, 0 if the lane no longer holds the claim. If the lane still holds it, returns 'changed' if another
-- document stands there, or the name of an ingress key that holds another type.

if not is_held(redis.call('HGET', KEYS[1], ARGV[1]), ARGV[2]) then return 0 end
if is_outdated(ARGV[8], ARGV[9], ARGV[10]) then return 'changed' end
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'list' and kind ~= 'none' then return KEYS[2] .. ' holds a ' .. kind end
-- A full Redis refuses the first write of a script if it may take memory. This one takes none and changes nothing.
redis.call('HDEL', KEYS[1], '')
redis.call('LPUSH', KEYS[2], ARGV[3])
keep_alive('vcon:' .. ARGV[3], ARGV[6])
put_back_context(KEYS[2], ARGV[3], ARGV[4], ARGV[5])
keep_progress(ARGV[7], ARGV[8], ARGV[9], ARGV[11], ARGV[12])
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
