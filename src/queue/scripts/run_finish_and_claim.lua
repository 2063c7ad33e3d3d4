-- Finishes one vCon and claims the next. Returns the result of `finish`, and that of `claim` unless the lane still holds the
-- first claim.
local finished = finish()
if finished.err or type(finished[1]) ~= 'number' then return finished end
return {finished[1], claim(finished[1] > 0)}
