-- Finishes one vCon and takes the next. Returns the answer of `finish`, and of `claim` unless the first is still held.
local finished = finish()
if finished.err or type(finished[1]) ~= 'number' then return finished end
return {finished[1], claim(finished[1] > 0)}
