
-- Records that a link has written a vCon directly.
-- KEYS: the hash of vCons that links write directly, the list of recorded texts, the vCon's key.
-- ARGV: uuid, the key of the worker's claims, the lane.
-- Returns the text that the link began with, and those that it may have overwritten. If there are any, the link counts
-- as a writer until `direct_write_forget`: this reply may be lost, and the worker may die before it has merged them.

local own, base, start = redis.sha1hex(ARGV[2])
for name, lane, first, second in lanes_of(KEYS[1], ARGV[1]):gmatch(LANE) do
  if name == own and lane == ARGV[3] then base, start = tonumber(first), tonumber(second) end
end
if not base then return {} end
local texts = written_over(KEYS[2], base, start)
if #texts > 0 then return texts end
-- What this link made of the last text is one more text that others may overwrite, and that later texts are made of.
local count, last = last_kept(KEYS[2])
local text = last and text_under(KEYS[3]) or ''
if text ~= '' and text ~= last:sub(2) then
  redis.pcall('RPUSH', KEYS[2], (base == count - 1 and '+' or '*') .. text)
end
end_work(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3])
return texts
