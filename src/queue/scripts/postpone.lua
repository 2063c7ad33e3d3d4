-- Puts a claimed entry at the end of its list: a backend that answers has failed in all attempts for it.
-- KEYS: the claims hash, the hash of rounds, the ingress list.
-- ARGV: lane, the claim's token, entry, context, the context's time to live, the most rounds (0: any number),
--       seconds since the backend last did its work ('' where it never has, or where this round does not count),
--       the rounds' time to live, the document's, the stage that has failed, the field of the vCon's progress, the
--       key of the document it is kept with, the progress or '', the text that must stand there, the progress that the
--       claim was handed.
-- Answers 1 when done, 0 when the claim is not ours any more. Answers the number of rounds as text, and the claim
-- is still held, where these are too many; or 'changed', and it is still held, where another document stands there;
-- or the name of an ingress key that is no list. Only rounds count between which the backend has worked for others, and
-- only of one stage.

if not is_held(redis.call('HGET', KEYS[1], ARGV[1]), ARGV[2]) then return 0 end
if is_outdated(ARGV[12], ARGV[13], ARGV[14]) then return 'changed' end
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local rounds, at, stage = (redis.call('HGET', KEYS[2], ARGV[3]) or ''):match('^(%d+) (%d+%.%d+) (.*)$')
local most, worked = tonumber(ARGV[6]), tonumber(ARGV[7])
local counts = stage == ARGV[10] and worked and worked < now - tonumber(at)
rounds = counts and tonumber(rounds) + 1 or 1
if most > 0 and counts and rounds >= most then return tostring(rounds) end
local kind = redis.call('TYPE', KEYS[3]).ok
if kind ~= 'list' and kind ~= 'none' then return KEYS[3] .. ' holds a ' .. kind end

-- A full Redis refuses the first write of a script, if it may take memory. This one takes none and changes nothing.
redis.call('HDEL', KEYS[1], '')
redis.call('RPUSH', KEYS[3], ARGV[3])
keep_alive('vcon:' .. ARGV[3], ARGV[9])
-- Nothing from here on may keep the claim: the entry would be pushed again.
redis.pcall('HSET', KEYS[2], ARGV[3], ('%d %.6f '):format(rounds, now) .. ARGV[10])
redis.pcall('EXPIRE', KEYS[2], ARGV[8])
put_back_context(KEYS[3], ARGV[3], ARGV[4], ARGV[5])
keep_progress(ARGV[11], ARGV[12], ARGV[13], ARGV[15], ARGV[8])
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
