// Package redis lets gateways share their tokens in Redis or Valkey, be it one
// server, one behind Sentinel, or a Cluster. It is the store "redis" of the
// viewer_session handler.
package redis

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/sony/gobreaker/v2"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	viewersession "github.com/viewersession/caddy-viewer-session"
	"github.com/viewersession/caddy-viewer-session/internal/secret"
)

func init() {
	caddy.RegisterModule(new(Store))
	redis.SetLogger(quietly{})
}

// Defaults, as they are documented on the fields that they are for.
const (
	DefaultTimeout = 150 * time.Millisecond
	DefaultPrefix  = "viewer_session"
)

const (
	minTimeout, maxTimeout = time.Millisecond, time.Second

	defaultPort, defaultSentinelPort = 6379, 26379

	// connections bounds those to one server: a burst of cold documents must
	// not queue for them.
	connections = 100

	// failuresToOpen is after how many failures in a row the server is left
	// alone for a while; then one operation tries whether it is back.
	failuresToOpen = 3
)

// Tests shorten these.
var (
	// openFor is how long a server that fails is left alone.
	openFor = 3 * time.Second

	// closeAfter is how long connections outlive their config, for mints that
	// began with it and that no later config can finish.
	closeAfter = 5 * time.Second
)

// maxRetired is how many clients of former configs stay open, however often
// configs are reloaded.
const maxRetired = 2

// Store shares tokens in Redis or Valkey.
//
// What it keeps is encrypted, and names are keyed hashes: a dump shows neither
// tokens nor documents nor users, only how many there are. When the server is
// down or hangs, the gateway mints for itself; after three failures in a row
// the server is left alone for three seconds, and then tried with one
// operation at a time.
type Store struct {
	// Where the servers are: host:port, or unix//path. Several are nodes of
	// a Cluster, or the Sentinels if master_name is set. Default port: 6379,
	// for Sentinels 26379. Global placeholders such as `{env.NAME}` are replaced.
	Address []string `json:"address,omitempty"`

	// The ACL user. Default: the server's default user.
	Username string `json:"username,omitempty"`

	// The password, as one placeholder such as `{file./path}`. It is resolved
	// whenever a connection is made, so that a changed one needs no reload.
	Password string `json:"password,omitempty"`

	// What entries are encrypted with, as one placeholder: at least 32 bytes
	// of text, the same for all gateways. Make one with `openssl rand -base64 32`.
	EncryptionKey string `json:"encryption_key,omitempty"`

	// The encryption key that was used before. Entries that were written with
	// it are still read.
	PreviousEncryptionKey string `json:"previous_encryption_key,omitempty"`

	// The number of the database. A Cluster has only 0. Default: 0
	Database int `json:"database,omitempty"`

	// The name under which Sentinels know the primary.
	MasterName string `json:"master_name,omitempty"`

	// The ACL user and the password for the Sentinels, if they want one.
	SentinelUsername string `json:"sentinel_username,omitempty"`
	SentinelPassword string `json:"sentinel_password,omitempty"`

	// The address is that of a Cluster, although it is only one.
	Cluster bool `json:"cluster,omitempty"`

	// Connect with TLS. An empty object trusts what the system trusts.
	TLS *reverseproxy.TLSConfig `json:"tls,omitempty"`

	// How long one operation may take, connecting included: 1ms to 1s.
	// Default: 150ms
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// What names in the store begin with. Default: `viewer_session`
	Prefix string `json:"prefix,omitempty"`

	client  *client
	sealers []*sealer // the first one writes
	logger  *zap.Logger

	// damaged bounds how often entries that cannot be opened are logged.
	damaged rate.Sometimes
}

// CaddyModule returns the Caddy module information.
func (*Store) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.viewer_session.stores.redis",
		New: func() caddy.Module { return new(Store) },
	}
}

// Provision checks the config. It connects, and warns if that fails; it is no
// error, since gateways work without their store.
func (s *Store) Provision(ctx caddy.Context) error {
	s.logger = ctx.Logger()
	s.damaged = rate.Sometimes{First: 1, Interval: time.Minute}
	if err := s.check(); err != nil {
		return err
	}
	var values []string
	for _, key := range []struct{ option, placeholder string }{
		{"encryption_key", s.EncryptionKey},
		{"encryption_key (the previous one)", s.PreviousEncryptionKey},
	} {
		if key.placeholder == "" {
			continue
		}
		value, err := secret.Resolve(key.option, key.placeholder)
		if err != nil {
			return err
		}
		sealer, err := newSealer(value)
		if err != nil {
			return fmt.Errorf("%s %s: %w", key.option, key.placeholder, err)
		}
		s.sealers = append(s.sealers, sealer)
		values = append(values, value)
	}
	if len(values) == 2 && values[0] == values[1] {
		return errors.New("encryption_key: the previous key is the same as the new one")
	}
	if s.Password != "" {
		if _, err := secret.Resolve("password", s.Password); err != nil {
			return err
		}
	}
	if err := s.connect(ctx); err != nil {
		return err
	}
	if err := s.tryOut(ctx); err != nil {
		s.logger.Warn("cannot use the shared store yet; each gateway mints for itself until it can be reached",
			zap.Strings("address", s.Address), zap.Error(err))
	}
	return nil
}

// check refuses what can be seen to be wrong without the machine that the
// config is for.
func (s *Store) check() error {
	if len(s.Address) == 0 {
		return errors.New("address is missing: write the server's host and port, for example: address 10.0.0.5:6379")
	}
	for _, address := range s.Address {
		if strings.Contains(address, "://") || strings.Contains(address, "@") {
			return errors.New("address: write host:port alone; TLS, user, password and database are options of their own") // not quoted: it may hold the password
		}
	}
	if s.EncryptionKey == "" {
		return errors.New("encryption_key is missing: entries in the store are always encrypted; make a key with openssl rand -base64 32, and name where it is, for example: encryption_key {file./run/secrets/viewer_session_key}")
	}
	for _, option := range []struct{ name, value string }{
		{"encryption_key", s.EncryptionKey},
		{"encryption_key", s.PreviousEncryptionKey},
		{"password", s.Password},
		{"sentinel_password", s.SentinelPassword},
	} {
		if option.value == "" {
			continue
		}
		if err := secret.Check(option.name, option.value); err != nil {
			return err
		}
	}
	switch {
	case s.Cluster && s.MasterName != "":
		return errors.New("cluster and master_name exclude each other: Sentinel watches a server that is not a Cluster")
	case s.clustered() && s.Database != 0:
		return errors.New("database: a Cluster has only database 0 (several addresses are a Cluster, unless master_name says that they are Sentinels)")
	case s.Database < 0:
		return fmt.Errorf("database %d: write 0 or more", s.Database)
	case s.Username != "" && s.Password == "":
		return errors.New("username needs a password")
	case s.MasterName == "" && (s.SentinelUsername != "" || s.SentinelPassword != ""):
		return errors.New("sentinel_username and sentinel_password are for Sentinels: add master_name")
	}
	if timeout := time.Duration(s.Timeout); s.Timeout != 0 && (timeout < minTimeout || timeout > maxTimeout) {
		return fmt.Errorf("timeout %s: write a duration from 1ms to 1s", timeout)
	}
	if strings.ContainsAny(s.Prefix, "{} \t\r\n") {
		return fmt.Errorf("prefix %q: braces and white space have no place in it", s.Prefix)
	}
	return nil
}

func (s *Store) clustered() bool { return s.MasterName == "" && (s.Cluster || len(s.Address) > 1) }

// client is connections with their circuit breakers.
type client struct {
	redis.UniversalClient
	timeout time.Duration

	// inUse is held for reading during an operation, and for writing to close.
	inUse  sync.RWMutex
	closed bool

	// A Cluster has a breaker for each node, by address, so that one node
	// which is down does not keep the others from being asked.
	breaker *gobreaker.CircuitBreaker[any]
	nodes   sync.Map
}

func newBreaker() *gobreaker.CircuitBreaker[any] {
	return gobreaker.NewCircuitBreaker[any](gobreaker.Settings{
		Timeout:      openFor,
		ReadyToTrip:  func(counts gobreaker.Counts) bool { return counts.ConsecutiveFailures >= failuresToOpen },
		IsSuccessful: alive,
	})
}

// connect makes a client, which connects when it is needed.
func (s *Store) connect(ctx caddy.Context) error {
	options, err := s.options(ctx)
	if err != nil {
		return err
	}
	s.client = &client{timeout: options.ReadTimeout, breaker: newBreaker()}
	switch {
	case s.MasterName != "":
		s.client.UniversalClient = redis.NewFailoverClient(options.Failover())
	case s.clustered():
		s.client.UniversalClient = redis.NewClusterClient(options.Cluster())
	default:
		s.client.UniversalClient = redis.NewClient(options.Simple())
	}
	return nil
}

// alive reports whether the server can go on being asked. One that cannot
// write at the moment still answers look-ups.
func alive(err error) bool {
	return err == nil || redis.IsOOMError(err) || redis.IsReadOnlyError(err) || redis.IsNoReplicasError(err) ||
		redis.HasErrorPrefix(err, "MISCONF")
}

// options are go-redis' options. Nothing is tried twice: the gateway would
// rather mint than wait.
func (s *Store) options(ctx caddy.Context) (*redis.UniversalOptions, error) {
	timeout := time.Duration(s.Timeout)
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	replacer := caddy.NewReplacer()
	options := &redis.UniversalOptions{
		DB:                    s.Database,
		MaxRetries:            -1,
		DialerRetries:         1,
		DialTimeout:           timeout,
		ReadTimeout:           timeout,
		WriteTimeout:          timeout,
		PoolTimeout:           timeout,
		ContextTimeoutEnabled: true,
		PoolSize:              connections,
		ConnMaxIdleTime:       5 * time.Minute,
		DisableIdentity:       true, // it needs a command that ACLs may not allow
		MaintNotificationsConfig: &maintnotifications.Config{
			Mode: maintnotifications.ModeDisabled,
		},
	}
	for _, address := range s.Address {
		address, err := replacer.ReplaceOrErr(address, true, true)
		if err != nil {
			return nil, fmt.Errorf("address: %w", err)
		}
		if s.MasterName != "" {
			address, err = completeAddress(address, defaultSentinelPort)
		} else {
			address, err = completeAddress(address, defaultPort)
		}
		if err != nil {
			return nil, err
		}
		options.Addrs = append(options.Addrs, address)
	}
	var user string
	for option, value := range map[string]struct{ from, to *string }{
		"username":          {&s.Username, &user},
		"master_name":       {&s.MasterName, &options.MasterName},
		"sentinel_username": {&s.SentinelUsername, &options.SentinelUsername},
	} {
		var err error
		if *value.to, err = replacer.ReplaceOrErr(*value.from, true, true); err != nil {
			return nil, fmt.Errorf("%s: %w", option, err)
		}
	}
	if s.Password != "" {
		options.CredentialsProviderContext = func(context.Context) (username, password string, err error) {
			password, err = secret.Resolve("password", s.Password)
			return user, password, err
		}
	}
	if s.SentinelPassword != "" {
		var err error
		if options.SentinelPassword, err = secret.Resolve("sentinel_password", s.SentinelPassword); err != nil {
			return nil, err
		}
	}
	if s.TLS != nil {
		var err error
		if options.TLSConfig, err = s.TLS.MakeTLSClientConfig(ctx); err != nil {
			return nil, fmt.Errorf("tls: %w", err)
		}
		if options.TLSConfig == nil { // for an empty config
			options.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		}
	}
	return options, nil
}

// completeAddress adds the default port, and turns Caddy's unix// into what
// go-redis takes for a socket.
func completeAddress(address string, port uint) (string, error) {
	parsed, err := caddy.ParseNetworkAddressWithDefaults(address, "tcp", port)
	if err == nil && parsed.IsUnixNetwork() {
		return parsed.Host, nil
	}
	if err != nil || parsed.PortRangeSize() != 1 || parsed.Network != "tcp" {
		return "", fmt.Errorf("address %q: write host:port, or unix//path/to/socket", address)
	}
	return net.JoinHostPort(parsed.Host, strconv.FormatUint(uint64(parsed.StartPort), 10)), nil
}

// Cleanup ends the connections, a little later: mints that began with this
// config still give their locks back. It also runs after a Provision that failed.
func (s *Store) Cleanup() error {
	if s.client != nil {
		s.client.retire()
	}
	return nil
}

// retired are clients of former configs that are still open, the oldest first.
var retired struct {
	sync.Mutex
	clients []*client
}

// retire closes the client after a while, or as soon as others have retired
// after it.
func (c *client) retire() {
	retired.Lock()
	defer retired.Unlock()
	retired.clients = append(retired.clients, c)
	for len(retired.clients) > maxRetired {
		go retired.clients[0].shut() // ends with the operations under way
		retired.clients = retired.clients[1:]
	}
	time.AfterFunc(closeAfter, func() {
		retired.Lock()
		retired.clients = slices.DeleteFunc(retired.clients, func(other *client) bool { return other == c })
		retired.Unlock()
		c.shut()
	})
}

// shut closes the client when no operation is under way.
func (c *client) shut() {
	c.inUse.Lock()
	defer c.inUse.Unlock()
	if !c.closed {
		c.closed = true
		_ = c.Close()
	}
}

// use runs an operation, unless the client has been closed.
func (c *client) use(operation func() (any, error)) (any, error) {
	c.inUse.RLock()
	defer c.inUse.RUnlock()
	if c.closed {
		return nil, viewersession.ErrStoreUnavailable
	}
	return operation()
}

// do runs one operation on the key, unless its server is known to be down.
func (c *client) do(ctx context.Context, key string, operation func(ctx context.Context) (any, error)) (any, error) {
	return c.use(func() (any, error) { return c.doOpen(ctx, key, operation) })
}

func (c *client) doOpen(ctx context.Context, key string, operation func(ctx context.Context) (any, error)) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	breaker := c.breaker
	if cluster, ok := c.UniversalClient.(*redis.ClusterClient); ok {
		node, err := run(breaker, func() (any, error) { return cluster.MasterForKey(ctx, key) })
		if err != nil {
			return nil, err
		}
		address := node.(*redis.Client).Options().Addr
		ofNode, ok := c.nodes.Load(address)
		if !ok {
			ofNode, _ = c.nodes.LoadOrStore(address, newBreaker())
		}
		breaker = ofNode.(*gobreaker.CircuitBreaker[any])
	}
	return run(breaker, func() (any, error) { return operation(ctx) })
}

func run(breaker *gobreaker.CircuitBreaker[any], operation func() (any, error)) (any, error) {
	result, err := breaker.Execute(operation)
	if _, moved := redis.IsMovedError(err); moved {
		err = fmt.Errorf("%w; the server is a node of a Cluster: write cluster", err)
	}
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return nil, viewersession.ErrStoreUnavailable
	}
	return result, err
}

// tryOut does what a mint does, so that a mistake shows when the config loads.
func (s *Store) tryOut(ctx context.Context) error {
	name := rand.Text()
	got, err := s.Acquire(ctx, name, "", time.Second)
	if err != nil {
		return err
	}
	return s.Release(ctx, name, got.Lock)
}

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
func (s *Store) lockKey(sealedName string) string  { return s.entryKey(sealedName) + ":lock" }

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

// finish runs what ends a mint. Whoever has a lock tries to give it back even
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

// quietly logs what go-redis has to say for those who debug: what matters
// comes back as an error.
type quietly struct{}

// Printf implements go-redis' logger.
func (quietly) Printf(_ context.Context, format string, v ...any) {
	caddy.Log().Named("http.handlers.viewer_session.stores.redis").Debug(fmt.Sprintf(format, v...))
}

// Interface guards
var (
	_ caddy.Provisioner   = (*Store)(nil)
	_ caddy.CleanerUpper  = (*Store)(nil)
	_ viewersession.Store = (*Store)(nil)
)
