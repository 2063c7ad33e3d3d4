
-- A link has written a vCon by itself.
-- KEYS: the hash of vCons that such links work on, the list of what was written meanwhile, the vCon's key.
-- ARGV: uuid, the key of the worker's claims, the lane.
-- Returns what the link began with, and what it may have written over. If there is anything, the link counts as at work
-- until `foreign_forget`: this answer may be lost, and the worker may die before it has merged the texts.

local own, base, start = redis.sha1hex(ARGV[2])
for name, lane, first, second in lanes_of(KEYS[1], ARGV[1]):gmatch(LANE) do
  if name == own and lane == ARGV[3] then base, start = tonumber(first), tonumber(second) end
end
if not base then return {} end
local texts = written_over(KEYS[2], base, start)
if #texts > 0 then return texts end
-- What this link made of the last text is one more that others may write over, and what later texts are made of.
local count, last = last_kept(KEYS[2])
local text = last and text_under(KEYS[3]) or ''
if text ~= '' and text ~= last:sub(2) then
  redis.pcall('RPUSH', KEYS[2], (base == count - 1 and '+' or '*') .. text)
end
end_work(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3])
return texts
