-- What others wrote while a link wrote a vCon by itself is in the document by now.
-- KEYS: the hash of vCons that such links work on, the list of what was written meanwhile.
-- ARGV: uuid, the key of the worker's claims, the lane, or nothing for all lanes of a worker that has ended.

end_work(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3])
return 1
