// Package redis lets gateways share their tokens in Redis or Valkey, be it one
// server, one behind Sentinel, or a Cluster. It is the store "redis" of the
// viewer_session handler.
package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
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

// maxRetired is how many clients of previous configs stay open, however often
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
