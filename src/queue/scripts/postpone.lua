-- Puts a claimed entry at the tail of its list, because a reachable backend has failed for it in all attempts.
-- KEYS: the claims hash, the hash of rounds, the ingress list.
-- ARGV: 1 lane, 2 the claim's token, 3 entry, 4 context, 5 the context's time to live, 6 how many rounds are too many (0: no
--       limit), 7 seconds between the last success of the backend and the failure ('' if it never succeeded, or if that
--       does not count), 8 the rounds' time to live, 9 the document's, 10 the stage that failed, 11 the field of the
--       vCon's progress, 12 the key of the document that the progress belongs to, 13 the progress or '', 14 the text that
--       must stand there, 15 the progress that the claim got, 16 how long such rounds must have gone on, 17 how long all
--       other rounds that count must have gone on ('' if none counts), 18 seconds since the failure.
-- Returns 1 if done, 0 if the lane no longer holds the claim. If the lane still holds it, returns the number of rounds as
-- text if these are too many, 'changed' if another document stands there, or the name of an ingress key that holds another
-- type.
-- Only rounds of one stage count. A limited number of rounds is allowed if the backend succeeded for others in between;
-- otherwise rounds may go on for very long. A time in which nobody tried the backend counts as a small part of that at most.

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

-- A full Redis refuses the first write of a script if it may take memory. This one takes none and changes nothing.
redis.call('HDEL', KEYS[1], '')
redis.call('RPUSH', KEYS[3], ARGV[3])
keep_alive('vcon:' .. ARGV[3], ARGV[9])
-- No failure from here on may leave the claim in place: the entry would be pushed again.
redis.pcall('HSET', KEYS[2], ARGV[3], ('%d %.6f %.6f %d '):format(rounds, failed, spent, all) .. ARGV[10])
redis.pcall('EXPIRE', KEYS[2], ARGV[8])
put_back_context(KEYS[3], ARGV[3], ARGV[4], ARGV[5])
keep_progress(ARGV[11], ARGV[12], ARGV[13], ARGV[15], ARGV[8])
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
