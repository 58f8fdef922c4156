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
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/caddyserver/caddy/v2"
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
	rate      float64 // per second; rate.Inf for none
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
	flights singleflight.Group
	backoff backoff
	limiter *rate.Limiter

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

	started    time.Time
	mintedAt   atomic.Int64 // when the latest mint succeeded, as elapsed has it
	keyChecks  *rate.Limiter
	failureLog logGate
	storeLog   logGate

	noExpWarned, fewerWarned, unverifiedWarned atomic.Bool

	// documentedUntil is until when requests name the permissions in the
	// documented way alone, as elapsed has it: the API has refused the other.
	documentedUntil atomic.Int64

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
func joinPool(settings poolSettings, endpoint *url.URL, t *tenant) (*pool, error) {
	value, _, err := pools.LoadOrNew(settings, func() (caddy.Destructor, error) {
		p := &pool{
			settings:  settings,
			endpoint:  endpoint,
			counters:  new(counters),
			limiter:   rate.NewLimiter(rate.Limit(settings.rate), settings.burst),
			keyChecks: rate.NewLimiter(keyCheckRate, keyCheckRate),
			started:   time.Now(),
		}
		var err error
		if p.cache, err = newTokenCache(settings.cacheSize, &p.counters.cacheRejected); err != nil {
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
	now := time.Now()
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
	if state == expired && f != nil {
		// The shared store may have had one that runs short.
		if cached = p.cache.get(key); cached != nil {
			state = short
		}
	}
	if cached != nil && p.cache.purges.cover(cached) {
		state = expired
	}
	switch {
	case f == nil:
		return minted, result, nil
	case f.reason != reasonClientGone && state == short && cached.freshness(time.Now(), 0) != expired:
		return cached, resultStale, nil
	default:
		return nil, resultError, f
	}
}

// lookUp returns the cached token and what it is good for; nil and expired if
// there is none that is valid. One of an account that was used before only does
// where none can be minted.
func (p *pool) lookUp(key []byte, minRemaining time.Duration, now time.Time) (*token, freshness) {
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
	cached, _ := p.lookUp(key, a.minRemaining, time.Now())
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
func (p *pool) failing(cached *token, now time.Time) bool {
	failedAt := cached.failedAt.Load()
	return failedAt > p.mintedAt.Load() && int64(p.elapsed(now))-failedAt < int64(badNewsAge) ||
		p.backoff.holding(now)
}

// elapsed is the time on the pool's own clock, which no step of the wall clock moves.
func (p *pool) elapsed(now time.Time) time.Duration { return now.Sub(p.started) }

// renew mints in the background. Of ctx, only the span goes on.
func (p *pool) renew(ctx context.Context, cached *token, a *ask, now time.Time) {
	if cached.claimRenewal(p.elapsed(now)) {
		p.fly(cached.key(), a, errand{renewal: true, span: trace.SpanFromContext(ctx)})
	}
}

// await waits for one mint, shared with all who ask for the same key. It does
// not return the rejected token, if there is one.
func (p *pool) await(ctx context.Context, key string, a *ask, e errand) (*token, result, *failure) {
	since := p.cache.purges.now()
	e.span = trace.SpanFromContext(ctx)
	for {
		flight := p.fly(key, a, e)
		select {
		case landed := <-flight.landed:
			if landed.Err == nil {
				minted := landed.Val.(*token)
				if minted.era < since && p.cache.purges.cover(minted) {
					continue // it joined a mint that began before the purge
				}
				if flight.minted.Load() {
					return minted, resultMinted, nil
				}
				// It may have joined a flight that did not know of the
				// rejected token, or such a flight was faster.
				if e.avoids(minted) {
					e.rejected, e.rejectedText = minted, ""
					continue
				}
				return minted, resultShared, nil
			}
			if f := asFailure(landed.Err); !f.gaveWay {
				return nil, resultError, f
			}
			// It joined a renewal that left mint_rate to those who wait,
			// which this one does, or that another gateway is at.
		case <-ctx.Done():
			return nil, resultError, &failure{reason: reasonClientGone, err: fmt.Errorf("the client went away while a token was minted: %w", context.Cause(ctx))}
		}
	}
}

// errand is what a flight is for, but for the token that it brings.
type errand struct {
	renewal      bool       // nobody waits for it
	rejected     *token     // a browser says that this one was rejected, which is the cached one
	rejectedText string     // a browser says that this one was rejected, and none is cached
	span         trace.Span // of the request that led to it; nil for none
}

type flight struct {
	landed <-chan singleflight.Result
	minted atomic.Bool // whether this caller's own call is the one that minted
}

// fly starts a mint for key, or joins the one that is under way. It ends by
// itself within the timeout, whoever waits for it.
func (p *pool) fly(key string, a *ask, e errand) *flight {
	flight := new(flight)
	asked := *a
	// Without the account: when the key has changed, those who still come
	// with the old one join those who already come with the new one.
	name := key[len(account{}):]
	flight.landed = p.flights.DoChan(name, func() (any, error) {
		t, minted, f := p.land(name, &asked, e)
		if f != nil {
			return nil, f
		}
		flight.minted.Store(minted)
		return t, nil
	})
	return flight
}

// land runs one flight: it looks again, here and in the shared store, asks for
// admission, mints, and publishes the token before the flight ends, so that
// there is no moment at which a request finds neither the flight nor the token.
func (p *pool) land(name string, a *ask, e errand) (t *token, minted bool, f *failure) {
	defer func() {
		// Nobody else could recover a panic in a flight.
		if r := recover(); r != nil {
			t, minted, f = nil, false, p.panicked(r)
		}
	}()
	began := p.cache.purges.now()
	key, now := p.account.Load().cacheKey(name), time.Now()
	cached, state := p.lookUp(key, a.minRemaining, now)
	if state == fresh && cached != e.rejected && !p.cache.purges.cover(cached) {
		return cached, false, nil // published between the look-up and this flight
	}
	lease := new(lease)
	if !p.backoff.remembers(name, now) {
		if t, lease, f = p.consult(key, a, e, cached, began); f != nil {
			return nil, false, f
		}
		if t != nil {
			p.cache.put(t, time.Now())
			return t, false, nil
		}
	}
	var shared *token
	defer func() { lease.finish(shared) }()
	if now = time.Now(); e.rejected.freshness(now, 0) != expired {
		if f := p.claimReplacement(e.rejected, now); f != nil {
			return nil, false, f
		}
	}
	admission, f := p.backoff.admit(name, a.documentID, time.Now())
	if f != nil && f.reason == reasonKeyRefused && p.refreshKey(p.credential()) {
		admission, f = p.backoff.admit(name, a.documentID, time.Now())
	}
	if f != nil {
		return nil, false, f
	}
	t, ownOnly, f := p.mintAdmitted(name, a, e, began, lease)
	now = time.Now()
	if f == nil {
		p.mintedAt.Store(int64(p.elapsed(now)))
	} else if cached != nil && !f.gaveWay {
		cached.failedAt.Store(int64(p.elapsed(now)))
	}
	if f = p.backoff.settle(admission, f, now); f != nil {
		if !f.gaveWay {
			p.failed(f, now)
		}
		return nil, false, f
	}
	p.worked(now)
	if !ownOnly {
		shared = t
	}
	return t, true, nil
}

// mintAdmitted mints and publishes. It never panics: an admission that is not
// settled would hold up others for good.
func (p *pool) mintAdmitted(name string, a *ask, e errand, began era, lease *lease) (t *token, ownOnly bool, f *failure) {
	defer func() {
		if r := recover(); r != nil {
			t, f = nil, p.panicked(r)
		}
	}()
	ctx, cancel := context.WithTimeout(mintContext(), p.settings.timeout)
	defer cancel()
	if e.renewal {
		f = p.takeSpareRate()
	} else {
		f = p.waitForRate(ctx, lease)
	}
	if f != nil {
		return nil, false, f
	}
	if t, ownOnly, f = p.mint(ctx, name, a, e); f != nil {
		return nil, false, f
	}
	t.era = began
	if e.rejected != nil || e.rejectedText != "" {
		t.replaceAfter.Store(int64(p.elapsed(time.Now()) + replacementRest))
	}
	p.cache.put(t, time.Now())
	return t, ownOnly, nil
}

// claimReplacement lets a rejected token be replaced, once in a while: a page
// that goes wrong must not turn every attempt into a mint.
func (p *pool) claimReplacement(rejected *token, now time.Time) *failure {
	elapsed := int64(p.elapsed(now))
	if after := rejected.replaceAfter.Load(); elapsed < after {
		return &failure{
			reason:  reasonTooSoon,
			err:     fmt.Errorf("this document's token was replaced, or could not be, less than %s ago", replacementRest),
			retryAt: now.Add(time.Duration(after - elapsed)),
		}
	}
	rejected.replaceAfter.Store(elapsed + int64(replacementRest))
	return nil
}

// purge forgets the tokens of one document, or all if documentID is empty, and
// returns how many there were. Mints under way are not stored any more;
// requests that come from now on do not get what they bring.
func (p *pool) purge(documentID string) int {
	return p.cache.purge(documentID, time.Now())
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

// mint asks the API, once more with the new key if the key was refused and has
// changed, once more if the first attempt surely did not reach it, and once
// more in the documented way if the request was refused. ownOnly is as in
// tokenFacts.
func (p *pool) mint(ctx context.Context, name string, a *ask, e errand) (t *token, ownOnly bool, f *failure) {
	form := p.bodyForm(a)
	repeated, fellBack := false, false
	for {
		tenant := p.active.Load()
		credential := tenant.credential.Load()
		minted, err := p.askAPI(ctx, tenant.transport, credential.apiKey, a, form, e)
		if err == nil {
			if fellBack {
				p.documentedUntil.Store(int64(p.elapsed(time.Now()) + fallbackMemory))
				tenant.logger.Warn("the API refuses requests that name permissions in two ways; naming them as document_permissions only from now on, and trying again in an hour")
			}
			p.warnOfToken(tenant.logger, &minted, a)
			if credential == p.credential() { // and not one that was replaced meanwhile
				p.useAccount(&credential.account)
			}
			t = newToken(string(credential.account.cacheKey(name)), minted.jwt, minted.exp, minted.askedExp, time.Now())
			return t, minted.ownOnly, nil
		}
		f := asFailure(err)
		if f.reason == reasonOverGranted {
			p.documentedUntil.Store(0)
		}
		switch {
		case ctx.Err() != nil:
			return nil, false, f
		case a.mayFallBack(f, form):
			p.limiter.ReserveN(time.Now(), 1) // it counts, and has had its turn
			form, fellBack = documentedName, true
		case !repeated && (f.unsent || f.reason == reasonKeyRefused && p.refreshKey(credential)):
			repeated = true
		default:
			return nil, false, f
		}
	}
}

// fallbackMemory is how long the API is believed to take only what is documented.
const fallbackMemory = time.Hour

// bodyForm returns how to name the permissions.
func (p *pool) bodyForm(a *ask) bodyForm {
	if int64(p.elapsed(time.Now())) < p.documentedUntil.Load() && documented(a.permissions) {
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
func (p *pool) askAPI(ctx context.Context, transport http.RoundTripper, apiKey string, a *ask, form bodyForm, e errand) (mintReply, error) {
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
	minted, err := mintToken(ctx, transport, p.endpoint, apiKey, a, form)
	if err != nil {
		f := asFailure(err)
		status, result = f.answered, outcome(f.reason)
		return mintReply{}, err
	}
	status, result = minted.status, outcomeOK
	p.counters.lastMint.Store(time.Now().UnixNano())
	return minted, nil
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

// takeSpareRate is for renewals, which count towards mint_rate but give way:
// they take what is left of it when nobody waits.
func (p *pool) takeSpareRate() *failure {
	now := time.Now()
	reserve := float64(p.limiter.Burst()) / 4
	if p.limiter.TokensAt(now) < reserve || !p.limiter.AllowN(now, 1) {
		return &failure{reason: reasonRateLimited, gaveWay: true, err: errors.New("a renewal gave way to requests that wait for mint_rate")}
	}
	return nil
}

// waitForRate queues for mint_rate. Other gateways, which may have some of it
// left, are not to wait as well, so it gives the lease's lock back first.
func (p *pool) waitForRate(ctx context.Context, lease *lease) *failure {
	now := time.Now()
	reservation := p.limiter.ReserveN(now, 1)
	delay := reservation.DelayFrom(now)
	if delay == 0 {
		return nil
	}
	if deadline, ok := ctx.Deadline(); ok && now.Add(delay).After(deadline) {
		reservation.CancelAt(now)
		p.counters.rateLimited.Add(1)
		return &failure{
			reason:  reasonRateLimited,
			err:     fmt.Errorf("over mint_rate: %d tokens wait to be minted; strangers may be asking for made-up documents, or mint_rate is too low", int(delay.Seconds()*p.settings.rate)),
			retryAt: now.Add(delay - p.settings.timeout),
		}
	}
	lease.yield()
	if !sleep(ctx, delay) {
		return &failure{reason: reasonTimeout, err: fmt.Errorf("waiting for mint_rate: %w", ctx.Err())}
	}
	return nil
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
