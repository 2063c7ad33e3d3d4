-- Renews a replay lock, or lets go of it.
-- KEYS: the lock.
-- ARGV: its value, its time to live in milliseconds; 0 lets go.
-- Returns 1, or 0 where somebody else has it, or nobody.

if redis.call('TYPE', KEYS[1]).ok ~= 'string' or redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
