-- What others wrote while a link wrote a vCon by itself is merged by now.
-- KEYS: the hash of vCons that such links work on, the list of what was written meanwhile. ARGV: uuid.

if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then redis.call('DEL', KEYS[2]) end
return 1
