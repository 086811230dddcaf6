package {{ package }}

import android.Manifest
import android.content.pm.PackageManager
import android.os.Bundle
import android.os.SystemClock
import android.widget.TextView
import androidx.activity.ComponentActivity
import androidx.activity.result.contract.ActivityResultContracts
import androidx.camera.core.CameraSelector
import androidx.camera.core.ImageAnalysis
import androidx.camera.core.ImageProxy
import androidx.camera.core.Preview
import androidx.camera.lifecycle.ProcessCameraProvider
import androidx.camera.view.PreviewView
import androidx.core.content.ContextCompat
import com.google.mediapipe.tasks.components.containers.Category
import java.util.Locale
import java.util.concurrent.Executors

/** Shows what the camera sees, and below it what the model takes it for. */
class MainActivity : ComponentActivity() {
    private val worker = Executors.newSingleThreadExecutor()
    private var classifier: Classifier? = null // belongs to the worker
    private lateinit var answer: TextView

    private val askForCamera =
        registerForActivityResult(ActivityResultContracts.RequestPermission()) { granted ->
            if (granted) startCamera() else answer.setText(R.string.no_camera)
        }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_main)
        answer = findViewById(R.id.answer)
        worker.execute {
            try {
                classifier = Classifier(applicationContext)
            } catch (error: RuntimeException) {
                show(getString(R.string.no_model, error.message))
            }
        }
        val permission = ContextCompat.checkSelfPermission(this, Manifest.permission.CAMERA)
        if (permission == PackageManager.PERMISSION_GRANTED) {
            startCamera()
        } else {
            askForCamera.launch(Manifest.permission.CAMERA)
        }
    }

    override fun onDestroy() {
        super.onDestroy()
        worker.execute { classifier?.close() }
        worker.shutdown()
    }

    private fun startCamera() {
        val future = ProcessCameraProvider.getInstance(this)
        future.addListener(
            {
                val preview = Preview.Builder().build()
                preview.setSurfaceProvider(findViewById<PreviewView>(R.id.preview).surfaceProvider)
                val analysis = ImageAnalysis.Builder()
                    .setBackpressureStrategy(ImageAnalysis.STRATEGY_KEEP_ONLY_LATEST)
                    .setOutputImageFormat(ImageAnalysis.OUTPUT_IMAGE_FORMAT_RGBA_8888)
                    .build()
                analysis.setAnalyzer(worker, ::analyze)
                val cameras = future.get()
                cameras.unbindAll()
                cameras.bindToLifecycle(
                    this, CameraSelector.DEFAULT_BACK_CAMERA, preview, analysis,
                )
            },
            ContextCompat.getMainExecutor(this),
        )
    }

    private fun analyze(image: ImageProxy) {
        image.use {
            val classifier = classifier ?: return
            val start = SystemClock.elapsedRealtime()
            val found = classifier.classify(image.toBitmap(), image.imageInfo.rotationDegrees)
            val took = SystemClock.elapsedRealtime() - start
            show("${lines(found)}\n${getString(R.string.took, took)}")
        }
    }

    private fun lines(categories: List<Category>) = categories.joinToString("\n") {
        String.format(Locale.ROOT, "%3.0f %%  %s", 100 * it.score(), it.categoryName())
    }

    private fun show(text: String) = runOnUiThread { answer.text = text }
}
