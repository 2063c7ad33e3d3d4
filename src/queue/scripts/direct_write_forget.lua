-- Forgets a direct write: the texts that others wrote meanwhile have been merged into the document.
-- KEYS: the hash of vCons that links write directly, the list of recorded texts.
-- ARGV: uuid, the key of the worker's claims, the lane, or none for all lanes of a worker that has ended.

end_work(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3])
return 1
