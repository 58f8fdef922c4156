package viewersession

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
)

// Store is a tier of tokens that several gateways share, so that a token which
// one of them has minted serves all. Stores are modules in the namespace
// http.handlers.viewer_session.stores, with their name under the key "store".
//
// A store is never needed: when a method returns an error, the gateway goes on
// by itself. So a method must return soon, well within the time that a mint
// takes, when the store is down or hangs.
//
// Names are arbitrary bytes, up to some kilobytes. Names and entries are
// secrets: an entry holds a token that can be used, and a name tells who looks at
// what. What a store keeps must be unreadable for others, and an
// entry must not be accepted under another name than its own.
type Store interface {
	// Acquire returns the entry under the name, unless it is the one whose
	// version is stale. If there is none, the caller gets the lock on the
	// name for lockFor, unless somebody else has it. Both is one step. With
	// an error it returns the lock that the caller may have got all the same.
	// If lockFor is 0, it only looks.
	Acquire(ctx context.Context, name, stale string, lockFor time.Duration) (Acquired, error)

	// Put stores an entry for ttl in place of the one that may be there,
	// and releases the lock if it is not empty and still the caller's.
	Put(ctx context.Context, name, lock string, entry []byte, ttl time.Duration) error

	// Release gives back a lock if it is still the caller's.
	Release(ctx context.Context, name, lock string) error
}

// Acquired is what Store.Acquire found: an entry, a lock, or neither if
// somebody else has the lock.
type Acquired struct {
	Entry   []byte
	Version string        // of the entry; entries of one name never have the same
	TTL     time.Duration // how long the store keeps the entry; 0 if it does not say
	Lock    string
}

// ErrStoreUnavailable is what a Store returns, perhaps wrapped, when it did not
// even try because it knows that the store is down.
var ErrStoreUnavailable = errors.New("the store is not asked for a while, because it fails")

const (
	storeNamespace = "http.handlers.viewer_session.stores"

	// lockMargin is how much longer a lock lives than a mint can take.
	lockMargin = 2 * time.Second

	// Between two looks for what another gateway mints.
	firstLook, lastLook = 20 * time.Millisecond, 250 * time.Millisecond

	// maxUnwanted is how many entries are looked at one after the other. Two
	// are usual while an encryption key is rotated.
	maxUnwanted = 3

	// publishTime bounds what is done in the store when a mint is over.
	publishTime = 500 * time.Millisecond

	// maxPeeks is how many flights look into the store at once without a turn.
	maxPeeks = 16

	// storeVersion is part of the names of entries. It changes when gateways
	// must not read what older ones have written: those of version 1 did not
	// check what a token permits.
	storeVersion = "2"
)

// storedToken is an entry of the store. Its times are by the API's clock, as far
// as it is known.
type storedToken struct {
	JWT      string `json:"jwt"`
	Minted   int64  `json:"minted"`             // Unix nanoseconds
	AskedExp int64  `json:"asked_exp"`          // Unix seconds
	Replaced bool   `json:"replaced,omitempty"` // it was minted because its predecessor was rejected
}

// sharedTier is the tier of tokens that gateways share. It keeps what it finds in
// the cache.
type sharedTier struct {
	store    func() Store // of the config that is in use; nil for none
	endpoint string
	timeout  time.Duration // of a mint
	cache    *tokenCache
	apiTime  func(clock.Time) time.Time
	now      func() clock.Time
	stats    *stats
	logger   func() *zap.Logger
	redact   func(string) string
	peeks    chan struct{} // bounds how many look at once without a turn
}

// look is one flight's search for its token in the shared store.
type look struct {
	*sharedTier
	key     []byte
	claims  *claims.Claims
	options flightOptions
	cached  *token
	began   epoch
}

// peek looks once, without asking for the lock, unless many do that already. It
// is for those who may not mint now. It returns and caches a token that will do.
func (l *look) peek() *token {
	store := l.store()
	if store == nil {
		return nil
	}
	select {
	case l.peeks <- struct{}{}:
		defer func() { <-l.peeks }()
	default:
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), l.timeout/2)
	defer cancel()
	got, err := store.Acquire(ctx, l.name(l.key), "", 0)
	switch {
	case err != nil:
		l.failed("acquire", err)
		return nil
	case got.Entry == nil:
		l.succeeded("acquire", "miss")
		return nil
	default:
		l.succeeded("acquire", "hit")
		return l.judge(got)
	}
}

// acquire returns a token that another gateway has minted, or the lease with
// which this one is to mint. It returns mint.ErrYielded for a renewal that another
// gateway is at. It takes no more than half of timeout, which is not taken off
// the mint's own.
func (l *look) acquire() (*token, *lease, error) {
	if l.store() == nil {
		return nil, nil, nil
	}
	under := &lease{sharedTier: l.sharedTier, name: l.name(l.key)}
	ctx, cancel := context.WithTimeout(context.Background(), l.timeout/2)
	defer cancel()
	stale, pause := "", firstLook
	for unwanted := 0; unwanted < maxUnwanted; {
		got, err := l.store().Acquire(ctx, under.name, stale, l.timeout+lockMargin)
		switch {
		case err != nil:
			l.failed("acquire", err)
			if errors.Is(err, ErrStoreUnavailable) {
				return nil, nil, nil
			}
			under.lock = got.Lock // perhaps
			return nil, under, nil
		case got.Entry != nil:
			l.succeeded("acquire", "hit")
			unwanted++
			if t := l.judge(got); t != nil {
				return t, under, nil
			}
			stale = got.Version
		case got.Lock != "":
			l.succeeded("acquire", "locked")
			under.lock = got.Lock
			return nil, under, nil
		default:
			l.succeeded("acquire", "held")
			if l.options.renewal {
				return nil, under, fmt.Errorf("another gateway renews the token: %w", mint.ErrYielded)
			}
			if !sleep(ctx, pause/2+rand.N(pause)) {
				return nil, under, nil // the owner of the lock may be gone
			}
			pause = min(2*pause, lastLook)
		}
	}
	return nil, under, nil
}

// judge returns and caches the token in an entry, if it will do.
func (l *look) judge(got Acquired) *token {
	now := l.now()
	t, err := l.read(got, string(l.key), &l.claims.Request, now)
	if err != nil {
		return nil
	}
	t.epoch = l.began
	wanted := l.wants(t, now)
	if wanted || l.cached.freshness(now, 0) == expired && !l.options.avoids(t) {
		l.cache.put(t, now) // one with less than min_remaining left is better than none
	}
	if !wanted {
		return nil
	}
	return t
}

// wants reports whether a token from the store will do.
func (l *look) wants(t *token, now clock.Time) bool {
	if l.options.avoids(t) {
		return false
	}
	if l.options.renewal && l.cached != nil && t.exp <= l.cached.exp {
		return false
	}
	if rejected := l.options.rejected; rejected != nil && t.minted.Mono() < rejected.minted.Mono() {
		return false // one that has been rejected before, maybe
	}
	return t.freshness(now, l.claims.MinRemaining) >= due
}

// name is everything that makes two tokens different.
func (s *sharedTier) name(key []byte) string {
	return string(append(claims.AppendField(claims.AppendField(nil, storeVersion), s.endpoint), key...))
}

// read returns the token in an entry, once it has been checked.
func (s *sharedTier) read(got Acquired, key string, request *dws.Request, now clock.Time) (*token, error) {
	var stored storedToken
	if err := json.Unmarshal(got.Entry, &stored); err != nil {
		return nil, errors.New("the entry is not one of ours")
	}
	api := s.apiTime(now)
	facts, err := dws.ReadToken(stored.JWT, request, stored.AskedExp, api)
	if err != nil {
		return nil, err
	}
	if facts.OtherCase {
		return nil, errors.New("the token names the user or the document in another case")
	}
	minted := time.Unix(0, stored.Minted)
	age := max(0, api.Sub(minted))
	left := time.Unix(facts.Exp, 0).Sub(api)
	if got.TTL > 0 {
		left = min(left, got.TTL) // the store's own clock is the gateways' common one
	}
	t := newToken(key, stored.JWT, facts.Exp, dws.Lifetime{Minted: now.Add(-age), Life: age + left, Asked: time.Unix(stored.AskedExp, 0).Sub(minted)})
	if stored.Replaced && age < replacementRest {
		t.replaceAfter.Store(int64(now.Mono() + replacementRest - age))
	}
	return t, nil
}

// lease is one flight's right to mint for all gateways. A nil lease is for no
// store, or one that is known to be down: nothing is written to it then.
type lease struct {
	*sharedTier
	name string
	lock string // empty: not ours
}

// publish shares the token that was minted under the lease, or nil for none, and
// gives the lock back in any case. Nobody waits for it: it runs beside the
// requests that have the token already, and ends after publishTime at the latest.
func (l *lease) publish(t *token, panicked func(any)) {
	if l == nil || t == nil && l.lock == "" {
		return
	}
	go func() {
		defer func() {
			// Nobody else could recover a panic here.
			if r := recover(); r != nil {
				panicked(r)
			}
		}()
		ctx, cancel := context.WithTimeout(context.Background(), publishTime)
		defer cancel()
		if t == nil || !l.put(ctx, t) {
			l.unlock(ctx)
		}
	}()
}

// put reports whether the lock has been given back as well.
func (l *lease) put(ctx context.Context, t *token) bool {
	now := l.now()
	age := now.Since(t.minted)
	ttl := t.life - age
	if ttl <= 0 || l.cache.purges.purged(t) {
		return false
	}
	minted := l.apiTime(now).Add(-age)
	entry, err := json.Marshal(storedToken{ //nolint:gosec // the store seals it
		JWT:      t.jwt(),
		Minted:   minted.UnixNano(),
		AskedExp: minted.Add(t.asked).Unix(),
		Replaced: t.replaceAfter.Load() != 0,
	})
	if err != nil {
		return false // strings and numbers
	}
	name, lock := l.sharedTier.name([]byte(t.key())), l.lock
	if name != l.name {
		lock = "" // minted with a key that has changed: the lock is on the old name
	}
	if err := l.store().Put(ctx, name, lock, entry, ttl); err != nil {
		l.failed("put", err)
		return false
	}
	l.succeeded("put", "ok")
	return lock == l.lock
}

// unlock gives the lock back: others need not wait for a mint that has failed.
func (l *lease) unlock(ctx context.Context) {
	if l.lock == "" {
		return
	}
	if err := l.store().Release(ctx, l.name, l.lock); err != nil {
		l.failed("release", err)
		return
	}
	l.succeeded("release", "ok")
}

// failed counts an operation that failed, and tells the operator.
func (s *sharedTier) failed(operation string, err error) {
	if errors.Is(err, ErrStoreUnavailable) {
		s.stats.countStore(operation, "unavailable")
		return
	}
	s.stats.countStore(operation, "error")
	text := s.redact(fmt.Sprintf("%s: %v", operation, err))
	if suppressed, ok := s.stats.sharing.recordFailure("", text, s.now().Wall()); ok {
		s.logger().Warn("shared store unavailable; minting locally", zap.String("error", text), zap.Int("suppressed", suppressed))
	}
}

// succeeded counts an operation, and tells the operator if others failed before.
func (s *sharedTier) succeeded(operation, outcome string) {
	s.stats.countStore(operation, outcome)
	if after, ok := s.stats.sharing.recordSuccess(s.now().Wall()); ok {
		s.logger().Info("shared store available again", zap.Duration("after", after))
	}
}

// sleep reports whether the time has passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
