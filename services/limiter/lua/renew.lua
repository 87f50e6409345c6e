-- Put off the end of the leases of calls under way. What was settled meanwhile stays so.
-- KEYS  1 in flight (sorted set), as in bucket.lua
-- ARGV  1 seconds from now; the others are the calls
local time = redis.call('TIME')
local ends_at = tonumber(time[1]) + tonumber(time[2]) / 1000000 + tonumber(ARGV[1])
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', ends_at, ARGV[i]) end
