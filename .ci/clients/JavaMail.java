import com.sun.mail.pop3.POP3Folder;
import com.sun.mail.pop3.POP3Message;
import java.io.FileInputStream;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.Properties;
import javax.mail.FetchProfile;
import javax.mail.Flags;
import javax.mail.Folder;
import javax.mail.Message;
import javax.mail.Session;
import javax.mail.Store;
import javax.mail.UIDFolder;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

/** JavaMail. Java cannot trust a file of certificates directly, so the program makes a trust store from it. */
public class JavaMail {
    public static void main(String[] arguments) throws Exception {
        String authority = System.getenv("POP3_CA");
        String protocol = authority.isEmpty() ? "pop3" : "pop3s";
        String prefix = "mail." + protocol + ".";
        Properties properties = new Properties();
        String mechanism = System.getenv("POP3_AUTH");
        properties.put(prefix + "timeout", "30000");
        properties.put(prefix + "apop.enable", String.valueOf(mechanism.equals("APOP")));
        if (!mechanism.isEmpty() && !mechanism.equals("APOP")) {
            properties.put(prefix + "auth.mechanisms", mechanism);
        }
        properties.put(prefix + "ssl.checkserveridentity", "true");
        if (!authority.isEmpty()) {
            properties.put(prefix + "ssl.socketFactory", trust(authority).getSocketFactory());
        }
        Store store = Session.getInstance(properties).getStore(protocol);
        int port = Integer.parseInt(System.getenv("POP3_PORT"));
        store.connect("localhost", port, "alice", System.getenv("POP3_PASSWORD"));
        POP3Folder folder = (POP3Folder) store.getFolder("INBOX");
        boolean delete = System.getenv("POP3_ACTION").equals("delete");
        folder.open(delete ? Folder.READ_WRITE : Folder.READ_ONLY);
        Message[] messages = folder.getMessages();
        FetchProfile profile = new FetchProfile();
        profile.add(UIDFolder.FetchProfileItem.UID);
        folder.fetch(messages, profile);
        for (Message message : messages) {
            Path file = Path.of(System.getenv("INBOX"), folder.getUID(message));
            try (InputStream top = ((POP3Message) message).top(0)) {
                Files.copy(top, file.resolveSibling(file.getFileName() + ".top"));
            }
            try (OutputStream output = Files.newOutputStream(file)) {
                message.writeTo(output);
            }
            message.setFlag(Flags.Flag.DELETED, delete);
        }
        folder.close(delete);
        store.close();
    }

    private static SSLContext trust(String file) throws Exception {
        KeyStore trusted = KeyStore.getInstance(KeyStore.getDefaultType());
        trusted.load(null, null);
        try (InputStream input = new FileInputStream(file)) {
            trusted.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(input));
        }
        TrustManagerFactory factory = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        factory.init(trusted);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, factory.getTrustManagers(), null);
        return context;
    }
}
