package viewersession

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

// pools keeps what must survive a reload: tokens, back-off, the rate limit and
// mints that are under way. The new config's handlers are provisioned before
// the old one's are cleaned up, so a pool that both use never ends in between.
var pools = caddy.NewUsagePool()

// poolSettings is what handlers must have in common to share a pool. It is the
// pool's key, compared as a whole.
type poolSettings struct {
	endpoint  string
	apiKey    string // the placeholder, not what it stands for
	timeout   time.Duration
	rate      float64 // per second; infinite for none
	burst     int
	cacheSize int64
	transport string // as JSON
	store     string // as JSON; empty for none
}

// pool gets tokens for all handlers with the same settings.
type pool struct {
	settings poolSettings
	endpoint *url.URL

	cache   *tokenCache
	flights flights
	backoff backoff
	queue   *queue

	mu      sync.Mutex
	tenants []*tenant // the handlers that use the pool, in the order in which they came

	// active is the tenant whose transport, key and logger are used: the
	// first, so that a config which is refused in the end is never asked.
	// The last one stays when all have left, for requests still under way.
	active atomic.Pointer[tenant]

	// account is whose tokens are looked up: that of the key which minted
	// last. A new key takes over when it has proven itself, so that a wrong
	// one takes no valid token away.
	account atomic.Pointer[account]

	// formerAccounts are those whose tokens were looked up before, the latest
	// first. They are valid for as long as they say: when the API is down
	// right after a rotation, nobody who has a document open should notice.
	formerAccounts atomic.Pointer[[]account]

	now        func() clock.Time
	started    clock.Time
	mintedAt   atomic.Int64 // when the latest mint succeeded, as elapsed has it
	keyChecks  *rate.Limiter
	failureLog logGate
	storeLog   logGate
	clockLog   logGate
	apiClock   apiClock

	noExpWarned, fewerWarned, unverifiedWarned atomic.Bool

	// documentedUntil is until when requests name the permissions in the
	// documented way alone, as elapsed has it: the API has refused the other.
	documentedUntil atomic.Int64

	peeks chan struct{} // bounds how many look into the store without a turn

	counters     *counters // outlives the pool
	mintDuration prometheus.Observer
	trouble      trouble
	storeTrouble storeTrouble
}

// tenant is what a loaded config lends to the pool: it ends with the config.
type tenant struct {
	transport  http.RoundTripper
	store      Store // nil for none
	logger     *zap.Logger
	credential atomic.Pointer[credential]
}

// credential is an API key with its fingerprint, which stands for the account
// in the keys of the cache.
type credential struct {
	apiKey  string
	account account
}

type account [16]byte

// maxFormerAccounts is how many rotations of the key are looked back.
const maxFormerAccounts = 3

func newTenant(transport http.RoundTripper, store Store, logger *zap.Logger, apiKey string) *tenant {
	t := &tenant{transport: transport, store: store, logger: logger}
	t.credential.Store(newCredential(apiKey))
	return t
}

func newCredential(apiKey string) *credential {
	sum := sha256.Sum256([]byte(apiKey))
	return &credential{apiKey: apiKey, account: account(sum[:16])}
}

// cacheKey completes a flight's name to the key of the cache.
func (a *account) cacheKey(name string) []byte {
	return append(append(make([]byte, 0, len(a)+len(name)), a[:]...), name...)
}

// joinPool adds a tenant to the pool with these settings and makes the pool if
// there is none.
func joinPool(settings poolSettings, endpoint *url.URL, t *tenant, now func() clock.Time) (*pool, error) {
	value, _, err := pools.LoadOrNew(settings, func() (caddy.Destructor, error) {
		p := &pool{
			settings:  settings,
			endpoint:  endpoint,
			counters:  new(counters),
			keyChecks: rate.NewLimiter(keyCheckRate, keyCheckRate),
			now:       now,
			started:   now(),
			clockLog:  logGate{interval: time.Hour},
			peeks:     make(chan struct{}, maxPeeks),
		}
		p.queue = newQueue(settings.rate, settings.burst, settings.timeout, func() time.Duration { return clock.Now().Mono() })
		p.flights.queue, p.flights.now = p.queue, p.now
		var err error
		if p.cache, err = newTokenCache(settings.cacheSize, &p.counters.cacheRejected, p.now); err != nil {
			return nil, err
		}
		p.account.Store(&t.credential.Load().account)
		p.mintDuration = mintDuration.WithLabelValues(endpoint.Host)
		enterLedger(p)
		return p, nil
	})
	if err != nil {
		return nil, err
	}
	p := value.(*pool)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tenants = append(p.tenants, t)
	p.activate()
	return p, nil
}

// leave takes a tenant out. The pool ends with the last one.
func (p *pool) leave(t *tenant) error {
	p.mu.Lock()
	p.tenants = slices.DeleteFunc(p.tenants, func(other *tenant) bool { return other == t })
	p.activate()
	p.mu.Unlock()
	_, err := pools.Delete(p.settings)
	return err
}

// activate lets the first tenant be the one that is used. The caller holds p.mu.
func (p *pool) activate() {
	if len(p.tenants) == 0 || p.active.Load() == p.tenants[0] {
		return
	}
	before := p.active.Swap(p.tenants[0])
	if before != nil && before.credential.Load().apiKey != p.credential().apiKey {
		p.backoff.forgetRefusals()
	}
}

// Destruct implements caddy.Destructor. Mints under way go on for the requests
// that wait for them; each ends by its timeout.
func (p *pool) Destruct() error {
	p.cache.close()
	leaveLedger(p, time.Now())
	return nil
}

// result says where a request's token came from.
type result uint8

const (
	resultNone     result = iota // not known yet
	resultHit                    // cached and fresh
	resultRenewing               // cached, and renewed in the background
	resultMinted                 // minted for this request
	resultShared                 // minted for another request that asked for the same
	resultStale                  // cached and short of min_remaining: none could be minted
	resultBypass                 // no token, by rule
	resultError                  // no token, because of a failure
)

// results are the names, in placeholders and labels.
var results = [...]string{
	resultHit:      "hit",
	resultRenewing: "renewing",
	resultMinted:   "minted",
	resultShared:   "shared",
	resultStale:    "stale",
	resultBypass:   "bypass",
	resultError:    "error",
}

// String implements fmt.Stringer.
func (r result) String() string { return results[r] }

// get returns a token for a, cached or minted. ctx only bounds how long this
// caller waits; a mint goes on for the others who wait for it.
func (p *pool) get(ctx context.Context, a *ask) (*token, result, *failure) {
	var buf [160]byte
	key := a.appendKey(append(buf[:0], p.account.Load()[:]...))
	now := p.now()
	cached, state := p.lookUp(key, a.minRemaining, now)
	switch state {
	case expired: // or none
	case fresh:
		return cached, resultHit, nil
	case due:
		p.renew(ctx, cached, a, now)
		return cached, resultRenewing, nil
	case short:
		if p.failing(cached, now) {
			p.renew(ctx, cached, a, now)
			return cached, resultStale, nil
		}
	}

	minted, result, f := p.await(ctx, string(key), a, errand{})
	if f == nil {
		return minted, result, nil
	}
	if state == expired {
		// The shared store may have had one that runs short.
		if cached = p.cache.get(key); cached != nil {
			state = short
		}
	}
	if state == short && p.mayStandIn(cached, key, f) {
		return cached, resultStale, nil
	}
	return nil, resultError, f
}

// mayStandIn reports whether the cached token for the key may be handed out
// although it runs short, because of why none could be minted.
func (p *pool) mayStandIn(cached *token, key []byte, f *failure) bool {
	if f.reason == reasonClientGone || p.cache.purges.cover(cached) || cached.freshness(p.now(), 0) == expired {
		return false
	}
	// A former key's token is for when the API is in trouble. Where it refuses
	// the document, the token would say what is not true any more.
	return cached.key() == string(key) || f.apiTrouble()
}

// lookUp returns the cached token and what it is good for; nil and expired if
// there is none that is valid. One of an account that was used before only does
// where none can be minted.
func (p *pool) lookUp(key []byte, minRemaining time.Duration, now clock.Time) (*token, freshness) {
	t := p.cache.get(key)
	if state := t.freshness(now, minRemaining); state != expired {
		return t, state
	}
	if former := p.formerAccounts.Load(); former != nil {
		for _, account := range *former {
			if t := p.cache.get(account.cacheKey(string(key[len(account):]))); t.freshness(now, 0) != expired {
				return t, short
			}
		}
	}
	return nil, expired
}

// getAnother is get for a browser whose token was rejected. If that very token
// is still the cached one, it is replaced.
func (p *pool) getAnother(ctx context.Context, a *ask, rejected string) (*token, result, *failure) {
	key := p.account.Load().cacheKey(string(a.appendKey(nil)))
	cached, _ := p.lookUp(key, a.minRemaining, p.now())
	switch {
	case cached == nil:
		// The shared store may have it.
		return p.await(ctx, string(key), a, errand{rejectedText: rejected})
	case cached.is(rejected):
		return p.await(ctx, string(key), a, errand{rejected: cached})
	default:
		return p.get(ctx, a)
	}
}

// failing reports whether minting another token in cached's place would likely
// fail, so that nobody who has this valid one should wait for it. What was
// heard of the API is believed for a while only: after that, a request waits
// and finds out, since it would be handed a token that runs short otherwise.
func (p *pool) failing(cached *token, now clock.Time) bool {
	failedAt := cached.failedAt.Load()
	return failedAt > p.mintedAt.Load() && int64(p.elapsed(now))-failedAt < int64(badNewsAge) ||
		p.backoff.holding(now)
}

// elapsed is the time on the pool's own clock, which no step of the wall clock moves.
func (p *pool) elapsed(now clock.Time) time.Duration { return now.Mono() - p.started.Mono() }

// renew mints in the background. Of ctx, only the span goes on.
func (p *pool) renew(ctx context.Context, cached *token, a *ask, now clock.Time) {
	if cached.claimRenewal(p.elapsed(now)) {
		p.fly(cached.key(), "", a, errand{renewal: true, span: trace.SpanFromContext(ctx)})
	}
}

// await waits for one mint, shared with all who ask for the same key. It does
// not return the rejected token, if there is one.
func (p *pool) await(ctx context.Context, key string, a *ask, e errand) (*token, result, *failure) {
	since := p.cache.purges.now()
	client := clientOf(ctx, a.userID)
	e.span = trace.SpanFromContext(ctx)
	for {
		flight, started := p.fly(key, client, a, e)
		select {
		case <-flight.landed:
			p.flights.leave(flight, client)
		case <-ctx.Done():
			p.flights.leave(flight, client)
			return nil, resultError, &failure{reason: reasonClientGone, err: fmt.Errorf("the client went away while a token was minted: %w", context.Cause(ctx))}
		}
		if f := flight.failure; f != nil {
			if f.gaveWay || f == errAbandoned {
				// It joined a renewal that left mint_rate to those who wait,
				// which this one does, or that another gateway is at.
				continue
			}
			return nil, resultError, f
		}
		t := flight.token
		switch {
		case t.era < since && p.cache.purges.cover(t):
			// It joined a mint that began before the purge.
		case started && flight.minted:
			return t, resultMinted, nil
		case e.avoids(t):
			// It may have joined a flight that did not know of the rejected
			// token, or such a flight was faster.
			e.rejected, e.rejectedText = t, ""
		case !started && !flight.minted && t.freshness(p.now(), a.minRemaining) < due:
			// It joined a flight for a route that is content with less.
		case !started && t.key()[:len(account{})] != string(p.account.Load()[:]):
			// It joined a mint that began with a key that has been replaced.
		default:
			return t, resultShared, nil
		}
	}
}

// fly starts a flight for the key, or joins the one that is under way. It ends
// by itself within the timeout, whoever waits for it. A client that is not
// empty waits, and leaves in the end.
func (p *pool) fly(key, client string, a *ask, e errand) (f *flight, started bool) {
	asked := *a
	// Without the account: when the key has changed, those who still come
	// with the old one join those who already come with the new one.
	return p.flights.join(key[len(account{}):], client, func(f *flight) {
		f.token, f.minted, f.failure = p.land(f, &asked, e)
	})
}

// land runs one flight: what costs little comes first, then a turn under
// mint_rate, then the shared store and its lock, and the mint at last. The token
// is published before the flight ends, so that there is no moment at which a
// request finds neither the flight nor the token.
func (p *pool) land(fl *flight, a *ask, e errand) (t *token, minted bool, f *failure) {
	defer func() {
		// Nobody else could recover a panic in a flight.
		if r := recover(); r != nil {
			t, minted, f = nil, false, p.panicked(r)
		}
	}()
	began := p.cache.purges.now()
	key, now := p.account.Load().cacheKey(fl.name), p.now()
	cached, state := p.lookUp(key, a.minRemaining, now)
	if state == fresh && cached != e.rejected && !p.cache.purges.cover(cached) {
		return cached, false, nil // published between the look-up and this flight
	}
	replaces := e.rejected.freshness(now, 0) != expired
	if replaces {
		if f := p.tooSoon(e.rejected, now); f != nil {
			return nil, false, f
		}
	}
	look := p.newLook(key, a, e, cached, began)
	switch f, remembered := p.heldBack(fl.name, a.documentID, now); {
	case remembered:
		return nil, false, f
	case f != nil:
		if t := look.peek(); t != nil {
			return t, false, nil
		}
		return nil, false, f
	}

	left := p.settings.timeout
	if e.renewal {
		if !p.queue.takeSpare() {
			return nil, false, &failure{reason: reasonRateLimited, gaveWay: true, err: errors.New("a renewal gave way to requests that wait for mint_rate")}
		}
	} else {
		if t, left, f = p.takeTurn(fl, look); t != nil || f != nil {
			return t, false, f
		}
	}
	sent := false
	defer func() {
		if !sent {
			p.queue.giveBack()
		}
	}()

	t, lease, f := look.acquire()
	if t != nil || f != nil {
		return t, false, f
	}
	var shared *token
	defer func() { lease.finish(shared) }()
	now = p.now()
	if replaces {
		if f := p.claimReplacement(e.rejected, now); f != nil {
			return nil, false, f
		}
	}
	admission, f := p.backoff.admit(fl.name, a.documentID, now)
	if f != nil {
		return nil, false, f
	}
	sent = true
	t, ownOnly, f := p.mintAdmitted(fl.name, a, e, began, left)
	now = p.now()
	switch {
	case f == nil:
		p.mintedAt.Store(int64(p.elapsed(now)))
	case cached != nil && (cached.key() == string(key) || f.apiTrouble()):
		cached.failedAt.Store(int64(p.elapsed(now)))
	}
	if f = p.backoff.settle(admission, f, now); f != nil {
		p.failed(f, now.Wall())
		return nil, false, f
	}
	p.worked(now.Wall())
	if !ownOnly {
		shared = t
	}
	return t, true, nil
}

// heldBack returns why no mint may be sent now for the ask with this name, if
// that is so, and whether it is this ask's own failure that is remembered.
func (p *pool) heldBack(name, document string, now clock.Time) (f *failure, remembered bool) {
	f, remembered = p.backoff.held(name, document, now)
	if f != nil && f.reason == reasonKeyRefused && p.refreshKey(p.credential()) {
		f, remembered = p.backoff.held(name, document, now)
	}
	return f, remembered
}

// takeTurn waits for a turn under mint_rate. Whoever has to wait looks into the
// shared store first: what is there costs no mint.
func (p *pool) takeTurn(fl *flight, look *look) (t *token, left time.Duration, f *failure) {
	if p.flights.abandoned(fl) {
		return nil, 0, errAbandoned
	}
	if p.queue.take() {
		return nil, p.settings.timeout, nil
	}
	if t = look.peek(); t != nil {
		return t, 0, nil
	}
	left, f = p.flights.takeTurn(fl, p.settings.timeout)
	if f != nil && f.reason == reasonRateLimited {
		p.counters.rateLimited.Add(1)
		p.failed(f, time.Now())
	}
	return nil, left, f
}

// mintAdmitted mints and publishes. It never panics: an admission that is not
// settled would hold up others for good.
func (p *pool) mintAdmitted(name string, a *ask, e errand, began era, left time.Duration) (t *token, ownOnly bool, f *failure) {
	defer func() {
		if r := recover(); r != nil {
			t, f = nil, p.panicked(r)
		}
	}()
	ctx, cancel := context.WithTimeout(mintContext(), left)
	defer cancel()
	start := p.queue.now()
	if t, ownOnly, f = p.mint(ctx, name, a, e); f != nil {
		if f.reason == reasonTimeout && left < p.settings.timeout {
			// It had less time than it is entitled to, since it had to
			// queue: that says nothing of the API.
			p.queue.observe(left, false)
			hurried := *f
			hurried.hurried = true
			return nil, false, &hurried
		}
		return nil, false, f
	}
	p.queue.observe(p.queue.now()-start, true)
	t.era = began
	if e.rejected != nil || e.rejectedText != "" {
		t.replaceAfter.Store(int64(p.elapsed(p.now()) + replacementRest))
	}
	p.cache.put(t, p.now())
	return t, ownOnly, nil
}

// tooSoon returns a failure if the rejected token rests: a page that goes wrong
// must not turn every attempt into a mint.
func (p *pool) tooSoon(rejected *token, now clock.Time) *failure {
	rest := time.Duration(rejected.replaceAfter.Load()) - p.elapsed(now)
	if rest <= 0 {
		return nil
	}
	return &failure{
		reason:  reasonTooSoon,
		err:     fmt.Errorf("this document's token was replaced, or could not be, less than %s ago", replacementRest),
		retryAt: now.Add(min(rest, replacementRest)),
	}
}

// claimReplacement lets a rejected token be replaced, once in a while.
func (p *pool) claimReplacement(rejected *token, now clock.Time) *failure {
	if f := p.tooSoon(rejected, now); f != nil {
		return f
	}
	rejected.replaceAfter.Store(int64(p.elapsed(now) + replacementRest))
	return nil
}

// purge forgets the tokens of one document, or all if documentID is empty, and
// returns how many there were. Mints under way are not stored any more;
// requests that come from now on do not get what they bring.
func (p *pool) purge(documentID string) int {
	return p.cache.purge(documentID, p.now())
}

func (p *pool) panicked(r any) *failure {
	p.logger().Error("minting a session token panicked; this is a bug, please report it",
		zap.Any("panic", r), zap.ByteString("stack", debug.Stack()))
	return &failure{reason: reasonUnavailable, err: errors.New("minting panicked")}
}

// mintContext is the context that a mint runs under. It inherits nothing from
// a request: Caddy's transport obeys dial addresses that reverse_proxy and
// forward_auth leave in the request's variables, and would carry the API key
// there. Nor does it end with a config. The replacer is for placeholders in
// the transport's own settings.
func mintContext() context.Context {
	return context.WithValue(context.Background(), caddy.ReplacerCtxKey, caddy.NewReplacer())
}

// mint asks the API, and once more each if the first attempt surely did not reach
// it, or the key was refused and has changed; if the request was refused, and
// this machine's clock is off; and if it was refused, in the documented way.
// ownOnly is as in tokenFacts.
func (p *pool) mint(ctx context.Context, name string, a *ask, e errand) (t *token, ownOnly bool, f *failure) {
	form := p.bodyForm(a)
	repeated, fellBack, clockCorrected := false, false, false
	var early *mintReply // a token that ends early, and the key that it was minted with
	var earlyKey *credential
	for {
		tenant := p.active.Load()
		credential := tenant.credential.Load()
		now, offset := p.apiClock.now(p.now())
		minted, err := p.askAPI(ctx, mintRequest{
			ask: a, transport: tenant.transport, endpoint: p.endpoint, apiKey: credential.apiKey, form: form, now: now, clock: p.now,
		}, e)
		if err == nil && !clockCorrected && minted.life < min(a.minRemaining, minted.asked-maxClockOffset) && p.clockMoved(offset) {
			// The token ends early for a clock that was wrong, and is known now.
			p.queue.charge()
			clockCorrected, early, earlyKey = true, &minted, credential
			continue
		}
		if err != nil && early != nil {
			minted, credential, err = *early, earlyKey, nil // better than none
		}
		if err == nil {
			if fellBack {
				p.documentedUntil.Store(int64(p.elapsed(p.now()) + fallbackMemory))
				tenant.logger.Warn("the API refuses requests that name permissions in two ways; naming them as document_permissions only from now on, and trying again in an hour")
			}
			p.warnOfToken(tenant.logger, &minted, a)
			if credential == p.credential() { // and not one that was replaced meanwhile
				p.useAccount(&credential.account)
			}
			return newToken(string(credential.account.cacheKey(name)), minted.jwt, minted.exp, minted.lifetime), minted.ownOnly, nil
		}
		f := asFailure(err)
		if f.reason == reasonOverGranted {
			p.documentedUntil.Store(0)
		}
		switch {
		case ctx.Err() != nil:
			return nil, false, f
		case !clockCorrected && f.mayBeExp() && p.clockMoved(offset):
			p.queue.charge()
			clockCorrected = true
		case a.mayFallBack(f, form):
			p.queue.charge()
			form, fellBack = documentedName, true
		case !repeated && (f.unsent || f.reason == reasonKeyRefused && p.refreshKey(credential)):
			repeated = true
		default:
			return nil, false, f
		}
	}
}

// clockMoved reports whether the API's time is known to be another than it was
// thought to be with this offset.
func (p *pool) clockMoved(offset time.Duration) bool {
	_, known := p.apiClock.now(p.now())
	return (known - offset).Abs() > maxClockOffset
}

// fallbackMemory is how long the API is believed to take only what is documented.
const fallbackMemory = time.Hour

// bodyForm returns how to name the permissions.
func (p *pool) bodyForm(a *ask) bodyForm {
	if int64(p.elapsed(p.now())) < p.documentedUntil.Load() && documented(a.permissions) {
		return documentedName
	}
	return bothNames
}

// warnOfToken tells the operator once what is odd about the API's tokens.
func (p *pool) warnOfToken(logger *zap.Logger, minted *mintReply, a *ask) {
	if !minted.hasExp && p.noExpWarned.CompareAndSwap(false, true) {
		logger.Warn("the API's token has no exp; taking the one that was asked for", zap.Duration("ttl", a.ttl))
	}
	missing, unverified := minted.grant.doubts(a.permissions)
	if len(missing) > 0 && p.fewerWarned.CompareAndSwap(false, true) {
		logger.Warn("the API's token permits less than was asked for", zap.Strings("asked", a.permissions), zap.Strings("missing", missing))
	}
	if unverified != nil && p.unverifiedWarned.CompareAndSwap(false, true) {
		logger.Warn("what the API's token permits cannot be verified; it is used nevertheless",
			zap.Strings("asked", a.permissions), zap.String("error", cleanDetail(unverified.Error(), p.credential().apiKey)))
	}
}

// askAPI sends one request and counts it.
func (p *pool) askAPI(ctx context.Context, m mintRequest, e errand) (mintReply, error) {
	start := time.Now()
	ctx, span := startMintSpan(ctx, e, p.endpoint)
	status, result := 0, outcome(reasonUnavailable) // if it panics
	p.counters.inFlight.Add(1)
	defer func() {
		p.counters.inFlight.Add(-1)
		p.counters.countMint(result)
		p.mintDuration.Observe(time.Since(start).Seconds())
		endMintSpan(span, status, result)
	}()
	minted, err := mintToken(ctx, m)
	p.observeClock(minted.exchange)
	if err != nil {
		f := asFailure(err)
		status, result = f.answered, outcome(f.reason)
		return mintReply{}, err
	}
	status, result = minted.status, outcomeOK
	p.counters.lastMint.Store(time.Now().UnixNano())
	return minted, nil
}

// observeClock learns the API's time from an answer, and tells the operator if
// the clocks differ.
func (p *pool) observeClock(x exchange) {
	p.apiClock.observe(x)
	offset, _ := x.offset()
	if offset.Abs() <= maxClockOffset {
		return
	}
	if _, ok := p.clockLog.open("", time.Now()); ok {
		p.logger().Warn("this machine's clock is off, by the API's; set it by the network (NTP)", zap.Duration("ahead", offset.Round(time.Second)))
	}
}

// useAccount has the tokens of this account looked up from now on.
func (p *pool) useAccount(proven *account) {
	if *p.account.Load() == *proven {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	before := *p.account.Load()
	if before == *proven {
		return
	}
	// First the list, so that there is no moment without the tokens in use.
	former := []account{before}
	if older := p.formerAccounts.Load(); older != nil {
		former = append(former, *older...)
	}
	former = slices.DeleteFunc(former, func(a account) bool { return a == *proven })
	former = former[:min(len(former), maxFormerAccounts)]
	p.formerAccounts.Store(&former)
	p.account.Store(proven)
}

// keyCheckRate bounds how often per second a refused key is compared with what
// its placeholder gives now, which may read a file.
const keyCheckRate = 10

// refreshKey reports whether there is another key now than the refused one: a
// rotated secret file needs no reload.
func (p *pool) refreshKey(refused *credential) bool {
	if p.credential().apiKey == refused.apiKey {
		if !p.keyChecks.Allow() {
			return false
		}
		apiKey, err := resolveKey(p.settings.apiKey)
		if err != nil || apiKey == refused.apiKey {
			return false
		}
		changed := newCredential(apiKey)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.active.Load().credential.Store(changed)
		for _, t := range p.tenants {
			t.credential.Store(changed)
		}
		p.backoff.forgetRefusals()
	}
	return true
}

func (p *pool) credential() *credential { return p.active.Load().credential.Load() }

func (p *pool) logger() *zap.Logger { return p.active.Load().logger }

// trouble is what an operator asks first: what fails, and since when.
type trouble struct {
	mu     sync.Mutex
	last   *failure // the latest failure; nil if there was none
	at     time.Time
	since  time.Time // of the first failure that no success has followed; zero while all is well
	logged bool      // whether the log says so
}

// failed records a failure and tells the operator.
func (p *pool) failed(f *failure, now time.Time) {
	logged := p.logFailure(f, now)
	p.trouble.mu.Lock()
	defer p.trouble.mu.Unlock()
	p.trouble.last, p.trouble.at = f, now
	if p.trouble.since.IsZero() {
		p.trouble.since = now
	}
	p.trouble.logged = p.trouble.logged || logged
}

// worked records a success and tells the operator, if the log has failures.
func (p *pool) worked(now time.Time) {
	p.trouble.mu.Lock()
	since, logged := p.trouble.since, p.trouble.logged
	p.trouble.since, p.trouble.logged = time.Time{}, false
	p.trouble.mu.Unlock()
	if logged {
		p.logger().Info("session tokens are minted again", zap.Duration("after", now.Sub(since)))
	}
}

// logFailure tells the operator why tokens cannot be minted, and reports whether it did.
func (p *pool) logFailure(f *failure, now time.Time) bool {
	suppressed, ok := p.failureLog.open(f.reason, now)
	if !ok {
		return false
	}
	log := p.logger().Warn
	if f.misconfigured {
		log = p.logger().Error
	}
	log("cannot mint a session token",
		zap.String("reason", string(f.reason)),
		zap.Error(f),
		zap.Int("suppressed", suppressed))
	return true
}
