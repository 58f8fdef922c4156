package redis

import (
	"context"
	"crypto/rand"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	viewersession "github.com/viewersession/caddy-viewer-session"
)

var (
	acquireScript = redis.NewScript(`
local entry = redis.call('GET', KEYS[1])
if entry and entry ~= '' and (ARGV[1] == '' or string.sub(entry, 1, #ARGV[1]) ~= ARGV[1]) then
	-- A user of the server without the right to ask is told nothing.
	local ttl = redis.pcall('PTTL', KEYS[1])
	return {'entry', entry, type(ttl) == 'number' and tostring(ttl) or '0'}
end
if ARGV[3] == '0' then
	return {'none'}
end
if redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3]) then
	return {'locked'}
end
return {'held'}`)

	putScript = redis.NewScript(`
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if ARGV[3] ~= '' and redis.call('GET', KEYS[2]) == ARGV[3] then
	redis.call('DEL', KEYS[2])
end
return 1`)

	releaseScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then
	return redis.call('DEL', KEYS[1])
end
return 0`)
)

// entryKey and lockKey have the name in braces, so that a Cluster keeps them
// on one node, where one script can use both.
func (s *Store) entryKey(sealedName string) string { return s.prefix() + ":{" + sealedName + "}" }

func (s *Store) lockKey(sealedName string) string { return s.entryKey(sealedName) + ":lock" }

func (s *Store) prefix() string {
	if s.Prefix == "" {
		return DefaultPrefix
	}
	return s.Prefix
}

// Acquire implements viewersession.Store.
func (s *Store) Acquire(ctx context.Context, name, stale string, lockFor time.Duration) (viewersession.Acquired, error) {
	sealer := s.sealers[0]
	got, err := s.acquire(ctx, sealer, sealer.name(name), stale, lockFor)
	if err != nil || got.Entry != nil || len(s.sealers) == 1 || strings.HasPrefix(stale, string(sealer.header[:])) {
		return got, err
	}
	// There is none of the new key. Gateways that do not have it yet put
	// theirs where the previous key says.
	sealer = s.sealers[1]
	previous, err := s.acquire(ctx, sealer, sealer.name(name), "", 0)
	if err != nil || previous.Entry == nil || previous.Version == stale {
		return got, nil // a lock that has been got must not be lost
	}
	if got.Lock != "" {
		if err := s.Release(ctx, name, got.Lock); err != nil {
			return got, nil
		}
	}
	return previous, nil
}

func (s *Store) acquire(ctx context.Context, sealer *sealer, sealedName, stale string, lockFor time.Duration) (viewersession.Acquired, error) {
	owner := rand.Text()
	for {
		result, err := s.client.do(ctx, s.entryKey(sealedName), func(ctx context.Context) (any, error) {
			return acquireScript.Run(ctx, s.client, []string{s.entryKey(sealedName), s.lockKey(sealedName)},
				stale, owner, lockFor.Milliseconds()).StringSlice()
		})
		if err != nil {
			if lockFor == 0 {
				return viewersession.Acquired{}, err
			}
			// The server may have done it without being heard.
			return viewersession.Acquired{Lock: owner}, err
		}
		switch reply := result.([]string); {
		case len(reply) == 3 && reply[0] == "entry":
			sealed := []byte(reply[1])
			entry, err := sealer.open(sealedName, sealed)
			if err == nil {
				milliseconds, _ := strconv.ParseInt(reply[2], 10, 64) // what the script says
				return viewersession.Acquired{Entry: entry, Version: versionOf(sealed), TTL: time.Duration(max(milliseconds, 0)) * time.Millisecond}, nil
			}
			s.logDamaged(err)
			stale = versionOf(sealed) // as good as none
		case len(reply) == 1 && reply[0] == "locked":
			return viewersession.Acquired{Lock: owner}, nil
		default:
			return viewersession.Acquired{}, nil
		}
	}
}

func (s *Store) logDamaged(err error) {
	s.damaged.Do(func() {
		s.logger.Error("refused an entry in the shared store that was damaged or put there by somebody else; see who can write to it",
			zap.Error(err))
	})
}

// Put implements viewersession.Store.
func (s *Store) Put(ctx context.Context, name, lock string, entry []byte, ttl time.Duration) error {
	sealedName := s.sealers[0].name(name)
	sealed, err := s.sealers[0].seal(sealedName, entry)
	if err != nil {
		return err
	}
	return s.finish(ctx, s.entryKey(sealedName), lock, func(ctx context.Context) error {
		return putScript.Run(ctx, s.client, []string{s.entryKey(sealedName), s.lockKey(sealedName)},
			sealed, max(ttl.Milliseconds(), 1), lock).Err()
	})
}

// Release implements viewersession.Store.
func (s *Store) Release(ctx context.Context, name, lock string) error {
	key := s.lockKey(s.sealers[0].name(name))
	return s.finish(ctx, key, lock, func(ctx context.Context) error {
		return releaseScript.Run(ctx, s.client, []string{key}, lock).Err()
	})
}

// finish runs what ends a mint. The owner of a lock tries to give it back even
// if the server is held to be down: others would wait for it if it is not.
func (s *Store) finish(ctx context.Context, key, lock string, operation func(ctx context.Context) error) error {
	_, err := s.client.do(ctx, key, func(ctx context.Context) (any, error) { return nil, operation(ctx) })
	if lock != "" && errors.Is(err, viewersession.ErrStoreUnavailable) {
		_, err = s.client.use(func() (any, error) {
			ctx, cancel := context.WithTimeout(ctx, s.client.timeout)
			defer cancel()
			return nil, operation(ctx)
		})
	}
	return err
}
