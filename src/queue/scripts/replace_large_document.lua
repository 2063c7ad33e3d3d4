-- Moves a draft to the place of a document, in a transaction that watches the document.
-- KEYS: the vCon's key, the draft's. ARGV: all ingress lists.
-- Returns 1, or 2 if the document has been deleted: it may have expired just now.

if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[2])
  return 2
end
write(KEYS[1], 'draft', KEYS[2], ARGV[1])
return 1
