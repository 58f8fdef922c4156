package viewersession

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"runtime/debug"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
)

// pool gets tokens for all handlers with the same settings: from the cache, from
// the tier that gateways share, or freshly minted. It outlives reloads.
type pool struct {
	settings poolSettings
	endpoint *url.URL
	now      func() clock.Time
	started  clock.Time

	members members
	keys    keyring
	cache   *tokenCache
	shared  *sharedTier
	flights flights
	minter  *mint.Minter
	stats   *stats // outlives the pool

	mintedAt atomic.Int64 // when the latest mint succeeded, by the monotonic clock

	clockLog                                   logLimiter
	noExpWarned, fewerWarned, unverifiedWarned atomic.Bool
}

// newPool returns the pool for a first member, which is not added to it yet.
func newPool(settings poolSettings, endpoint *url.URL, first *member, now func() clock.Time) (*pool, error) {
	p := &pool{
		settings: settings,
		endpoint: endpoint,
		now:      now,
		started:  now(),
		stats:    &stats{mintDuration: mintDuration.WithLabelValues(endpoint.Host)},
		clockLog: logLimiter{interval: time.Hour},
	}
	var err error
	if p.cache, err = newTokenCache(settings.cacheSize, &p.stats.turnedAway, now); err != nil {
		return nil, err
	}
	p.minter = mint.New(mint.Config{
		Endpoint: endpoint, Timeout: settings.timeout, Rate: settings.rate, Burst: settings.burst,
		Source: &p.members, Now: now, Observe: p.stats.observeMint,
	})
	p.shared = &sharedTier{
		store: p.members.store, endpoint: settings.endpoint, timeout: settings.timeout, cache: p.cache,
		apiTime: p.minter.APITime, now: now, stats: p.stats, logger: p.members.logger, redact: p.redact,
		peeks: make(chan struct{}, maxPeeks),
	}
	p.members.resolveKey = func() (string, error) { return resolveKey(settings.apiKey) }
	p.members.keyChanged = p.minter.KeyChanged
	p.members.keyChecks = rate.NewLimiter(keyCheckRate, keyCheckRate)
	p.keys.current.Store(&first.key.Load().ID)
	return p, nil
}

// get returns a token with these claims, cached or minted. ctx only bounds how
// long this caller waits; a mint goes on for the others who wait for it.
func (p *pool) get(ctx context.Context, c *claims.Claims) (*token, result, *failure) {
	var buf [160]byte
	key := c.AppendKey(append(buf[:0], p.keys.current.Load()[:]...))
	now := p.now()
	cached, state := p.lookUp(key, c.MinRemaining, now)
	switch state {
	case expired: // or none
	case fresh:
		return cached, resultHit, nil
	case due:
		p.renew(ctx, cached, c, now)
		return cached, resultRenewing, nil
	case belowMinimum:
		if p.failing(cached, c, now) {
			p.renew(ctx, cached, c, now)
			return cached, resultStale, nil
		}
	}

	minted, result, f := p.wait(ctx, string(key), c, flightOptions{})
	if f == nil {
		return minted, result, nil
	}
	if state == expired {
		// The shared store may have had one with less than min_remaining left.
		if cached = p.cache.get(key); cached != nil {
			state = belowMinimum
		}
	}
	if state == belowMinimum && p.mayStandIn(cached, key, f) {
		return cached, resultStale, nil
	}
	return nil, resultError, f
}

// replace is get for a browser whose token was rejected. If that very token is
// still the cached one, it is replaced.
func (p *pool) replace(ctx context.Context, c *claims.Claims, rejected string) (*token, result, *failure) {
	key := p.keys.cacheKey(string(c.AppendKey(nil)))
	cached, _ := p.lookUp(key, c.MinRemaining, p.now())
	switch {
	case cached == nil:
		// The shared store may have it.
		return p.wait(ctx, string(key), c, flightOptions{rejectedText: rejected})
	case cached.is(rejected):
		return p.wait(ctx, string(key), c, flightOptions{rejected: cached})
	default:
		return p.get(ctx, c)
	}
}

// purge forgets the tokens of one document, or all if documentID is empty, and
// returns how many there were. Mints under way are not stored any more;
// requests that come from now on do not get what they bring.
func (p *pool) purge(documentID string) int {
	return p.cache.purge(documentID, p.now())
}

// lookUp returns the cached token and its freshness; nil and expired if there is
// none that is valid. A token of a previous key will only do where none can be
// minted.
func (p *pool) lookUp(key []byte, minRemaining time.Duration, now clock.Time) (*token, freshness) {
	t := p.cache.get(key)
	if state := t.freshness(now, minRemaining); state != expired {
		return t, state
	}
	if previous := p.keys.previous.Load(); previous != nil {
		for _, id := range *previous {
			if t := p.cache.get(withKeyID(&id, string(nameOf(key)))); t.freshness(now, 0) != expired {
				return t, belowMinimum
			}
		}
	}
	return nil, expired
}

// mayStandIn reports whether the cached token may be handed out although less
// than min_remaining is left, because of why none could be minted.
func (p *pool) mayStandIn(cached *token, key []byte, f *failure) bool {
	if f.reason == reasonClientGone || p.cache.purges.purged(cached) || cached.freshness(p.now(), 0) == expired {
		return false
	}
	// A previous key's token is for when the API is in trouble. Where it refuses
	// the document, the token would say what is not true any more.
	return cached.key() == string(key) || f.reason.apiTrouble()
}

// failing reports whether minting another token in cached's place would likely
// fail, so that nobody who has this valid one should wait for it. A failure is
// assumed to persist for at most mint.BadNewsAge.
func (p *pool) failing(cached *token, c *claims.Claims, now clock.Time) bool {
	failedAt := cached.failedAt.Load()
	return failedAt > p.mintedAt.Load() && int64(now.Mono())-failedAt < int64(mint.BadNewsAge) ||
		p.minter.Failing(c.DocumentID, now)
}

// renew mints in the background. Of ctx, only the span is passed on.
func (p *pool) renew(ctx context.Context, cached *token, c *claims.Claims, now clock.Time) {
	if cached.claimRenewal(now) {
		p.start(cached.key(), "", c, flightOptions{renewal: true, span: trace.SpanFromContext(ctx)})
	}
}

// wait waits for one mint, shared with all who ask for the same key. It does not
// return the rejected token, if there is one.
func (p *pool) wait(ctx context.Context, key string, c *claims.Claims, o flightOptions) (*token, result, *failure) {
	since := p.cache.purges.now()
	client := clientOf(ctx, c.UserID)
	o.span = trace.SpanFromContext(ctx)
	for {
		flight, started := p.start(key, client, c, o)
		select {
		case <-flight.done:
			flight.waiters.Leave(client)
		case <-ctx.Done():
			flight.waiters.Leave(client)
			return nil, resultError, &failure{reason: reasonClientGone, err: fmt.Errorf("the client went away while a token was minted: %w", context.Cause(ctx))}
		}
		if f := flight.failure; f != nil {
			if errors.Is(f, mint.ErrYielded) || errors.Is(f, mint.ErrAbandoned) {
				// It joined a renewal that gave way to those who wait, as this
				// request does, or that another gateway is at.
				continue
			}
			return nil, resultError, f
		}
		t := flight.token
		switch {
		case t.epoch < since && p.cache.purges.purged(t):
			// It joined a mint that began before the purge.
		case started && flight.minted:
			return t, resultMinted, nil
		case o.avoids(t):
			// It may have joined a flight that did not know of the rejected
			// token, or such a flight was faster.
			o.rejected, o.rejectedText = t, ""
		case !started && !flight.minted && t.freshness(p.now(), c.MinRemaining) < due:
			// It joined a flight for a route that is content with less.
		case !started && t.keyID() != *p.keys.current.Load():
			// It joined a mint that began with a key that has been replaced.
		default:
			return t, resultShared, nil
		}
	}
}

// start starts a flight for the key, or joins the one that is under way. It ends
// by itself within the timeout, even if nobody waits for it.
func (p *pool) start(key, client string, c *claims.Claims, o flightOptions) (f *flight, started bool) {
	copied := *c
	return p.flights.start(nameOf(key), client, p.minter.NewWaiters, func(f *flight) {
		defer func() {
			// Nobody else could recover a panic in a flight.
			if r := recover(); r != nil {
				p.panicked(r, debug.Stack())
				f.failure = failureOf(errors.New("minting panicked"))
			}
		}()
		t, minted, err := p.mintOnce(f, &copied, o)
		if err != nil {
			f.failure = failureOf(err)
			return
		}
		f.token, f.minted = t, minted
	})
}

// errFound ends a mint because the shared store has had the token.
var errFound = errors.New("found in the shared store")

// mintOnce runs one flight: the cache again, then what the minter knows of
// failures and its turns, with a look into the shared store; then the store's
// lock, and the mint at last. The token is published before the flight ends, so
// that there is no moment at which a request finds neither.
func (p *pool) mintOnce(fl *flight, c *claims.Claims, o flightOptions) (t *token, minted bool, err error) {
	began := p.cache.purges.now()
	key, now := p.keys.cacheKey(fl.name), p.now()
	cached, state := p.lookUp(key, c.MinRemaining, now)
	if state == fresh && cached != o.rejected && !p.cache.purges.purged(cached) {
		return cached, false, nil // published between the look-up and this flight
	}
	replaces := o.rejected.freshness(now, 0) != expired
	if replaces {
		if err := o.rejected.tooSoon(now); err != nil {
			return nil, false, err
		}
	}
	look := &look{sharedTier: p.shared, key: key, claims: c, options: o, cached: cached, began: began}
	var under *lease
	var found, toShare *token
	defer func() { under.publish(toShare, func(r any) { p.panicked(r, debug.Stack()) }) }()
	minting, err := p.minter.Mint(mint.Job{
		Request: &c.Request, Name: fl.name, MinRemaining: c.MinRemaining, Waiters: fl.waiters, Renewal: o.renewal, Span: o.span,
		Peek: func() error {
			if found = look.peek(); found != nil {
				return errFound
			}
			return nil
		},
		Prepare: func() (err error) {
			if found, under, err = look.acquire(); err == nil && found != nil {
				return errFound
			}
			if err == nil && replaces {
				return o.rejected.claimReplacement(p.now())
			}
			return err
		},
	})
	if errors.Is(err, errFound) {
		return found, false, nil
	}
	p.report(&minting, err, c)
	now = p.now()
	if err != nil {
		if minting.Sent && cached != nil && (cached.key() == string(key) || failureOf(err).reason.apiTrouble()) {
			cached.failedAt.Store(int64(now.Mono()))
		}
		return nil, false, err
	}
	if minting.Key == p.members.key() { // and not one that was replaced meanwhile
		p.keys.promote(&minting.Key.ID)
	}
	t = newToken(string(withKeyID(&minting.Key.ID, fl.name)), minting.JWT, minting.Exp, minting.Lifetime)
	t.epoch = began
	if o.rejected != nil || o.rejectedText != "" {
		t.replaceAfter.Store(int64(now.Mono() + replacementRest))
	}
	p.cache.put(t, now)
	p.mintedAt.Store(int64(now.Mono()))
	if !minting.OtherCase {
		toShare = t
	}
	return t, true, nil
}

// report counts what came of a mint, and tells the operator.
func (p *pool) report(m *mint.Result, err error, c *claims.Claims) {
	logger, now := p.members.logger(), p.now().Wall()
	if m.ClockOffset != 0 {
		if _, ok := p.clockLog.allow("", time.Now()); ok {
			logger.Warn("this machine's clock differs from the API's; synchronize it with NTP", zap.Duration("ahead", m.ClockOffset.Round(time.Second)))
		}
	}
	if m.Panic != nil {
		p.panicked(m.Panic, m.Stack)
	}
	if err != nil {
		f := failureOf(err)
		turnedDown := f.reason == reasonRateLimited && !errors.Is(err, mint.ErrYielded)
		if turnedDown {
			p.stats.rateLimited.Add(1)
		}
		if !m.Sent && !turnedDown {
			return // it says nothing new
		}
		if suppressed, ok := p.stats.minting.recordFailure(f.reason, f.Error(), now); ok {
			log := logger.Warn
			if f.misconfigured() {
				log = logger.Error
			}
			log("cannot mint a session token", zap.String("reason", string(f.reason)), zap.Error(f), zap.Int("suppressed", suppressed))
		}
		return
	}
	if m.FellBack {
		logger.Warn("the API refuses requests that name permissions in two ways; naming them as document_permissions only from now on, and trying again in an hour")
	}
	p.warnOfToken(logger, &m.Reply, c)
	if after, ok := p.stats.minting.recordSuccess(now); ok {
		logger.Info("session tokens are minted again", zap.Duration("after", after))
	}
}

// warnOfToken tells the operator once what is odd about the API's tokens.
func (p *pool) warnOfToken(logger *zap.Logger, reply *dws.Reply, c *claims.Claims) {
	if !reply.HasExp && p.noExpWarned.CompareAndSwap(false, true) {
		logger.Warn("the API's token has no exp; assuming the one that was asked for", zap.Duration("ttl", c.TTL))
	}
	if c.AppProvided {
		return // no permissions were asked for
	}
	missing, unverified := reply.Grant.Doubts(c.Permissions)
	if len(missing) > 0 && p.fewerWarned.CompareAndSwap(false, true) {
		logger.Warn("the API's token permits less than was asked for", zap.Strings("asked", c.Permissions), zap.Strings("missing", missing))
	}
	if unverified != nil && p.unverifiedWarned.CompareAndSwap(false, true) {
		logger.Warn("what the API's token permits cannot be verified; using it nevertheless",
			zap.Strings("asked", c.Permissions), zap.String("error", p.redact(unverified.Error())))
	}
}

// redact takes the API key, and whatever looks like a key or a token, out of a text.
func (p *pool) redact(text string) string { return dws.Redact(text, p.members.key().Secret) }

// panicked tells the operator of a bug.
func (p *pool) panicked(r any, stack []byte) {
	p.members.logger().Error("minting a session token panicked; this is a bug, please report it",
		zap.Any("panic", r), zap.ByteString("stack", stack))
}
