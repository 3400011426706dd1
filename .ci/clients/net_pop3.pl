# Net::POP3, from Perl's standard library.  TLS needs IO::Socket::SSL, AUTH Authen::SASL, and CRAM-MD5 Digest::HMAC_MD5.
use strict;
use warnings;
use Authen::SASL;
use Net::POP3;

my $mechanism = $ENV{POP3_AUTH};
my $password  = $ENV{POP3_PASSWORD};
my %tls       = $ENV{POP3_CA} ? (SSL => 1, SSL_ca_file => $ENV{POP3_CA}) : ();
if ($ENV{POP3_CERTIFICATE}) {
    $tls{SSL_cert_file} = $tls{SSL_key_file} = $ENV{POP3_CERTIFICATE};
}
my $client = Net::POP3->new('localhost', Port => $ENV{POP3_PORT}, Timeout => 30, %tls) or die "no connection: $@";
$client->capa;
if ($mechanism eq 'APOP') {
    defined $client->apop('alice', $password) or die $client->message;
} elsif ($mechanism) {
    my %answers = (user => 'alice', pass => $password);
    my $sasl    = Authen::SASL->new(mechanism => $mechanism, callback => \%answers);
    $client->auth($sasl) or die $client->message;
} else {
    defined $client->login('alice', $password) or die $client->message;
}
my $ids = $client->uidl or die $client->message;
for my $number (sort { $a <=> $b } keys %$ids) {
    save($ids->{$number}, $client->get($number));
    save("$ids->{$number}.top", $client->top($number, 0));
    if ($ENV{POP3_ACTION} eq 'delete') {
        $client->delete($number) or die $client->message;
    }
}
$client->quit or die $client->message;

sub save {
    my ($name, $lines) = @_;
    open my $file, '>:raw', "$ENV{INBOX}/$name" or die $!;
    print $file @{ $lines or die $client->message };
    close $file or die $!;
}
