-- Puts a claimed entry at the end of its list: a backend that answers has failed in all attempts for it.
-- KEYS: the claims hash, the hash of rounds, the ingress list.
-- ARGV: lane, the claim's token, entry, context, the context's time to live, the most rounds (0: any number),
--       seconds between the time that the backend last did its work and the failure ('' where it never has, or where that
--       does not count),
--       the rounds' time to live, the document's, the stage that has failed, the field of the vCon's progress, the
--       key of the document it is kept with, the progress or '', the text that must stand there, the progress that the
--       claim was handed, how long it must have failed for such rounds, how long for all rounds that count otherwise ('' where
--       none does), seconds since the failure.
-- Answers 1 when done, 0 when the claim is not ours any more. Answers the number of rounds as text, and the claim
-- is still held, where these are too many; or 'changed', and it is still held, where another document stands there;
-- or the name of an ingress key that is no list. Only rounds of one stage count. Of those between which the backend has
-- worked for others, so many are too many; of others, only if that goes on for very long. A time in which nobody tried it
-- counts for no more than a part of that.

if not is_held(redis.call('HGET', KEYS[1], ARGV[1]), ARGV[2]) then return 0 end
if is_outdated(ARGV[12], ARGV[13], ARGV[14]) then return 'changed' end
local time = redis.call('TIME')
local failed = time[1] + time[2] / 1e6 - tonumber(ARGV[18])
local note = (redis.call('HGET', KEYS[2], ARGV[3]) or '')
local rounds, at, spent, all, stage = note:match('^(%d+) (%d+%.%d+) (%d+%.%d+) (%d+) (.*)$')
local most, worked, least, longest = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[16]), tonumber(ARGV[17])
local since = stage == ARGV[10] and math.max(failed - tonumber(at), 0)
local others = since and worked and worked < since
if others or since and longest then
  rounds, all = tonumber(rounds) + (others and 1 or 0), tonumber(all) + 1
  spent = tonumber(spent) + math.min(since, longest and longest / 24 or since)
else
  rounds, all, spent = 1, 1, 0
end
if most > 0 and others and rounds >= most and spent >= least then return tostring(rounds) end
if most > 0 and since and longest and all >= most and spent >= longest then return tostring(all) end
local kind = redis.call('TYPE', KEYS[3]).ok
if kind ~= 'list' and kind ~= 'none' then return KEYS[3] .. ' holds a ' .. kind end

-- A full Redis refuses the first write of a script, if it may take memory. This one takes none and changes nothing.
redis.call('HDEL', KEYS[1], '')
redis.call('RPUSH', KEYS[3], ARGV[3])
keep_alive('vcon:' .. ARGV[3], ARGV[9])
-- Nothing from here on may keep the claim: the entry would be pushed again.
redis.pcall('HSET', KEYS[2], ARGV[3], ('%d %.6f %.6f %d '):format(rounds, failed, spent, all) .. ARGV[10])
redis.pcall('EXPIRE', KEYS[2], ARGV[8])
put_back_context(KEYS[3], ARGV[3], ARGV[4], ARGV[5])
keep_progress(ARGV[11], ARGV[12], ARGV[13], ARGV[15], ARGV[8])
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
